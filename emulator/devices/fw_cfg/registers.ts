// QEMU firmware configuration device (docs/specs/fw_cfg), memory-mapped layout of `-M virt`. Registers and DMA
// structures are big-endian.

/** Bytes of the selected item, one after the other; eight bytes wide */
export const DATA = 0x0;
export const DATA_BYTES = 8;
/** 16 bits */
export const SELECTOR = 0x8;
/** Address of a DMA structure, high then low half; writing the low half starts it. Reads the signature */
export const DMA_HIGH = 0x10;
export const DMA_LOW = 0x14;
/** "QEMU CFG" */
export const DMA_SIGNATURE_HIGH = 0x5145_4d55;
export const DMA_SIGNATURE_LOW = 0x2043_4647;

/** Selector keys */
export const FW_CFG_KEY = Object.freeze({
  signature: 0x00,
  id: 0x01,
  uuid: 0x02,
  ramSize: 0x03,
  harts: 0x05,
  kernelAddress: 0x07,
  kernelSize: 0x08,
  initrdAddress: 0x0a,
  initrdSize: 0x0b,
  kernelData: 0x11,
  initrdData: 0x12,
  commandLineSize: 0x14,
  commandLineData: 0x15,
  fileDirectory: 0x19,
  firstFile: 0x20,
});

/** Bits of the `id` item */
export const ID_TRADITIONAL = 1;
export const ID_DMA = 2;

/** Structure of a DMA request: control, length, address */
export const DMA_STRUCTURE_BYTES = 16;
export const DMA_ERROR = 0x01;
export const DMA_READ = 0x02;
export const DMA_SKIP = 0x04;
export const DMA_SELECT = 0x08;
export const DMA_WRITE = 0x10;

/** A directory entry: size, key, two reserved bytes, name */
export const FILE_NAME_BYTES = 56;

export const FW_CFG_LIMITS = Object.freeze({
  files: 256,
  /** Of one DMA request, in `bytes`: it runs at once, so it must end soon */
  dmaBytes: 256 * 1024 * 1024,
});
