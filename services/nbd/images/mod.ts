export { type BackingPolicy, resolveChain } from './backing_policy.ts';
export type { Place } from './block_map.ts';
export { type CompressedTarget, type CopyOptions, copyImage } from './copy_image.ts';
export { DirtyBitmap, type DirtyBitmapOptions, DirtyBitmaps } from './dirty_bitmap.ts';
export {
  asImageError,
  type DiskImage,
  ImageError,
  type ImageErrorCode,
  type StatusBudget,
  type ZeroOptions,
} from './disk_image.ts';
export { guessedFormat, guessFormat, looksLikeSomeFormat } from './guess_format.ts';
export { IMAGE_FORMATS, type ImageFormat } from './image_format.ts';
export { type ImageLock, lockImage } from './image_lock.ts';
export {
  type AddKey,
  type CreateLuksOptions,
  changeLuksKeys,
  createLuks,
  createLuksHeader,
  type EraseKeys,
  inspectLuks,
  LuksImage,
  type LuksImageOptions,
} from './luks/mod.ts';
export { MappedImage } from './mapped_image.ts';
export { MemoryImage } from './memory_image.ts';
export { type ImageSource, type OpenImageOptions, openImage } from './open_image.ts';
export {
  amendQcow2,
  applySnapshot,
  checkQcow2,
  commitQcow2,
  createQcow2,
  createSnapshot,
  deleteSnapshot,
  inspectQcow2,
  type Progress,
  preallocateQcow2,
  type Qcow2CheckResult,
  Qcow2Image,
  type Qcow2ImageOptions,
  type Qcow2Info,
  type Qcow2Repair,
  rebaseQcow2,
  resizeQcow2,
} from './qcow2/mod.ts';
export { RawImage, type RawImageOptions } from './raw_image.ts';
export { ReadOnlyImage } from './read_only_image.ts';
export { SectorImage, type SectorImageOptions } from './sector_image.ts';
export {
  type CreateVhdOptions,
  createVhd,
  inspectVhd,
  openVhd,
  type VhdDetails,
  type VhdMap,
  vhdDiskBytes,
} from './vhd/mod.ts';
export { inspectVhdx, openVhdx, type VhdxDetails, type VhdxMap } from './vhdx/mod.ts';
export {
  type CreateVmdkOptions,
  createVmdk,
  inspectVmdk,
  openVmdk,
  openVmdkStream,
  type VmdkDetails,
  type VmdkMap,
} from './vmdk/mod.ts';
export { isZero } from './zeroes.ts';
