export {
  decodeLuksHeader,
  encodeLuksHeader,
  LUKS_HEADER_BYTES,
  type LuksHash,
  type LuksHeader,
  type LuksKeySlot,
  luksMaterialOffset,
} from './header.ts';
export { LUKS_LIMITS } from './limits.ts';
