export {
  decodeLuksHeader,
  encodeLuksHeader,
  encodeLuksSlot,
  encodeLuksSlotState,
  LUKS_HEADER_BYTES,
  type LuksHash,
  type LuksHeader,
  type LuksKeySlot,
  type LuksSlotField,
  luksMaterialOffset,
} from './header.ts';
export { LUKS_LIMITS } from './limits.ts';
