export {
  decodeVmdkDescriptor,
  encodeVmdkDescriptor,
  VMDK_ADAPTERS,
  VMDK_NO_PARENT,
  type VmdkAdapter,
  type VmdkDescriptor,
  type VmdkExtentLine,
  type VmdkExtentType,
} from './descriptor.ts';
export { VMDK_LIMITS } from './limits.ts';
export {
  decodeVmdkFooter,
  decodeVmdkGrainMarker,
  decodeVmdkSparseHeader,
  directoryBytesOf,
  encodeVmdkGrainMarker,
  encodeVmdkSparseHeader,
  looksLikeVmdkSparse,
  VMDK_FLAG,
  VMDK_GRAIN_MARKER_BYTES,
  VMDK_HEADER_BYTES,
  type VmdkSparseHeader,
} from './sparse_header.ts';
