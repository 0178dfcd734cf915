export { type CreateQcow2Options, createQcow2, emptyImage } from './create.ts';
export { FdImageFile, type ImageFile } from './image_file.ts';
export { inspectQcow2, type Qcow2Info } from './metadata.ts';
export { Qcow2Image, type Qcow2ImageOptions } from './qcow2_image.ts';
export { CorruptImageError } from './refcount_table.ts';
