export { DirtyBitmap, DirtyBitmaps } from './dirty_bitmap.ts';
export { asImageError, type DiskImage, ImageError, type ImageErrorCode, type ZeroOptions } from './disk_image.ts';
export { type ImageLock, lockImage } from './image_lock.ts';
export { MemoryImage } from './memory_image.ts';
export { IMAGE_FORMATS, type ImageFormat, type ImageSource, type OpenImageOptions, openImage } from './open_image.ts';
export { createQcow2, inspectQcow2, Qcow2Image, type Qcow2ImageOptions } from './qcow2/mod.ts';
export { RawImage, type RawImageOptions } from './raw_image.ts';
