/** QEMU's names: vpc is VHD, luks a raw disk behind a LUKS header. In a file of its own: who only checks a name loads no parser of images. */
export const IMAGE_FORMATS = ['raw', 'qcow2', 'vpc', 'vhdx', 'vmdk', 'luks'] as const;
export type ImageFormat = (typeof IMAGE_FORMATS)[number];
