import { Cursor, WireError, type WireErrorCode } from '../bytes/mod.ts';

// Boot image header of RISC-V Linux (Documentation/arch/riscv/boot-image-header.rst), version 0.2, little-endian.

/** In `bytes` */
export const RISCV_IMAGE_HEADER_BYTES = 64;
/** "RSC\x05" at offset 56, little-endian */
const RISCV_IMAGE_MAGIC2 = 0x0543_5352;
/** "RISCV\0\0\0" at offset 48; deprecated since header 0.2, so its absence is no fault */
const MAGIC2_OFFSET = 56;
const FLAG_BIG_ENDIAN = 1n;

export interface RiscvImage {
  /** From the start of RAM, in `bytes`; a multiple of 2 MiB on RV64 */
  readonly textOffset: number;
  /** Memory that the kernel needs from its start, its bss included, in `bytes` */
  readonly imageBytes: number;
  readonly versionMajor: number;
  readonly versionMinor: number;
}

/** True where a file that begins so claims to be such an image; the claim may be a lie. */
export function isRiscvImage(head: Uint8Array): boolean {
  if (head.length < MAGIC2_OFFSET + 4) return false;
  const cursor = new Cursor(head, 'RISC-V Image');
  cursor.skip(MAGIC2_OFFSET, 'header');
  return cursor.u32le('magic2') === RISCV_IMAGE_MAGIC2;
}

/**
 * Reads the header, which `head` begins with, and holds it against the file's size.
 *
 * @throws WireError
 */
export function decodeRiscvImage(head: Uint8Array, fileBytes: number): RiscvImage {
  const cursor = new Cursor(head, 'RISC-V Image header');
  cursor.skip(8, 'code');
  const textOffset = cursor.u64le('text_offset');
  const imageBytes = cursor.u64le('image_size');
  const flags = cursor.u64le('flags');
  const version = cursor.u32le('version');
  cursor.skip(4 + 8 + 8, 'reserved');
  const magic2 = cursor.u32le('magic2');
  cursor.skip(4, 'reserved');
  if (magic2 !== RISCV_IMAGE_MAGIC2) {
    throw refusal('ERR_WIRE_MAGIC', `magic2 is 0x${magic2.toString(16)}, expected "RSC\\x05"`, MAGIC2_OFFSET);
  }
  if ((flags & FLAG_BIG_ENDIAN) !== 0n) throw refusal('ERR_WIRE_VALUE', 'the kernel is big-endian', 24);
  // "this header is defined to be versioned": minor versions stay compatible, a new major version need not
  const versionMajor = version >>> 16;
  if (versionMajor !== 0) throw refusal('ERR_WIRE_VALUE', `header version ${versionMajor}, expected 0`, 32);
  if (textOffset > 1n << 32n || textOffset % 4096n !== 0n) {
    throw refusal('ERR_WIRE_VALUE', `text_offset 0x${textOffset.toString(16)} is no place for a kernel`, 8);
  }
  if (imageBytes > 1n << 32n) {
    throw refusal('ERR_WIRE_LIMIT', `image_size 0x${imageBytes.toString(16)}, limit is 4 GiB`, 16);
  }
  if (imageBytes < BigInt(fileBytes)) {
    throw refusal('ERR_WIRE_VALUE', `image_size ${imageBytes} is less than the file's ${fileBytes} bytes`, 16);
  }
  return {
    textOffset: Number(textOffset),
    imageBytes: Number(imageBytes),
    versionMajor,
    versionMinor: version & 0xffff,
  };
}

function refusal(code: WireErrorCode, found: string, offset: number): WireError {
  return new WireError(code, `Cannot accept RISC-V Image: ${found}`, { message: 'RISC-V Image', offset });
}
