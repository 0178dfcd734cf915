export { type AmendOptions, amendQcow2 } from './amend.ts';
export {
  commitQcow2,
  type Progress,
  preallocateQcow2,
  rebaseQcow2,
  renameBacking,
} from './chain_operations.ts';
export { checkFile, checkQcow2 } from './check.ts';
export type { Qcow2CheckResult, Qcow2Repair } from './check_walk.ts';
export { CorruptImageError } from './corrupt_image_error.ts';
export { type CreateQcow2Options, createQcow2, emptyImage } from './create.ts';
export type { Qcow2ImageOptions } from './engine.ts';
export { FdImageFile, type ImageFile } from './image_file.ts';
export { findSnapshot, inspectQcow2, type Qcow2Info } from './metadata.ts';
export { Qcow2Image } from './qcow2_image.ts';
export { type ResizeOptions, resizeQcow2 } from './resize.ts';
export { applySnapshot, createSnapshot, deleteSnapshot } from './snapshot_operations.ts';
