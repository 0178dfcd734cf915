export { asImageError, type DiskImage, ImageError, type ImageErrorCode, type ZeroOptions } from './disk_image.ts';
export { type ImageLock, lockImage } from './image_lock.ts';
export { MemoryImage } from './memory_image.ts';
export { RawImage, type RawImageOptions } from './raw_image.ts';
