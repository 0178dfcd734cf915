export {
  decodeVhdDynamicHeader,
  encodeVhdDynamicHeader,
  VHD_HEADER_BYTES,
  type VhdDynamicHeader,
} from './dynamic_header.ts';
export {
  decodeVhdFooter,
  encodeVhdFooter,
  looksLikeVhdFooter,
  VHD_FOOTER_BYTES,
  type VhdFooter,
  type VhdType,
} from './footer.ts';
export {
  coveringGeometry,
  diskBytes,
  geometryOf,
  geometrySectors,
  MAX_GEOMETRY,
  type VhdGeometry,
} from './geometry.ts';
export { VHD_LIMITS } from './limits.ts';
