import {
  type ByteSource,
  byteSource,
  Cursor,
  partOf,
  readAll,
  readHead,
  WireError,
} from '../../protocols/bytes/mod.ts';
import { decodeElf, type ElfProgram, isElf } from '../../protocols/elf/mod.ts';
import {
  decodeRiscvImage,
  isRiscvImage,
  RISCV_IMAGE_HEADER_BYTES,
  type RiscvImage,
} from '../../protocols/riscv_image/mod.ts';
import { BootError, type BootErrorCode } from './boot_error.ts';

/** Decompressors of the platform. Each throws when the input is damaged or the output would exceed `maxBytes`. */
export interface Decompressors {
  gunzip(bytes: Uint8Array, maxBytes: number): Uint8Array;
  unzstd(bytes: Uint8Array, maxBytes: number): Uint8Array;
}

/** What a kernel or firmware file turned out to be. */
export type ProgramFile =
  | { readonly kind: 'elf'; readonly program: ElfProgram; readonly bytes: ByteSource }
  | { readonly kind: 'image'; readonly header: RiscvImage; readonly bytes: ByteSource }
  /** No header that we know: bytes that run from their first one */
  | { readonly kind: 'flat'; readonly bytes: ByteSource };

type Compression = 'gzip' | 'zstd';
type Payload = { readonly compression: Compression; readonly bytes: ByteSource };

/** RFC 1952 2.3.1: ID1, ID2 and CM of deflate */
const GZIP_MAGIC = [0x1f, 0x8b, 0x08];
/** RFC 8878 3.1.1, little-endian on the wire */
const ZSTD_MAGIC = [0x28, 0xb5, 0x2f, 0xfd];
/** "MZ" and "zimg": Linux's self-decompressing EFI image (drivers/firmware/efi/libstub/zboot-header.S) */
const ZBOOT_MARK = 0x7a69_6d67;
const ZBOOT_HEADER_BYTES = 56;

/** All magics and headers above and below lie within so many bytes, which are read apart and checked first */
const HEAD_BYTES = RISCV_IMAGE_HEADER_BYTES;

/**
 * Opens a kernel: takes off one layer of compression, then tells the format by its magic and checks it. What is not
 * compressed is not read but for its headers.
 *
 * @throws BootError
 */
export function openKernel(file: ByteSource, maxBytes: number, decompressors: Decompressors | undefined): ProgramFile {
  const payload = compressedPayload(file);
  if (payload === undefined) return openProgram(file, 'kernel', 'ERR_BOOT_KERNEL');
  const bytes = byteSource(decompress(payload, maxBytes, decompressors));
  if (compressedPayload(bytes) !== undefined) {
    throw new BootError('ERR_BOOT_DECOMPRESS', 'Cannot decompress kernel: compressed more than once, expected once');
  }
  return openProgram(bytes, 'kernel', 'ERR_BOOT_KERNEL');
}

/** @throws BootError with `code` */
export function openProgram(file: ByteSource, what: string, code: BootErrorCode): ProgramFile {
  if (file.length === 0) throw new BootError(code, `Cannot load ${what}: the file is empty`);
  const head = readHead(file, HEAD_BYTES);
  try {
    if (isElf(head)) return { kind: 'elf', program: decodeElf(file), bytes: file };
    if (isRiscvImage(head)) return { kind: 'image', header: decodeRiscvImage(head, file.length), bytes: file };
  } catch (error) {
    if (!(error instanceof WireError)) throw error;
    throw new BootError(code, `Cannot load ${what}: ${error.message}`, { cause: error });
  }
  return { kind: 'flat', bytes: file };
}

function compressedPayload(file: ByteSource): Payload | undefined {
  const head = readHead(file, HEAD_BYTES);
  if (startsWith(head, GZIP_MAGIC)) return { compression: 'gzip', bytes: file };
  if (startsWith(head, ZSTD_MAGIC)) return { compression: 'zstd', bytes: file };
  return zbootPayload(head, file);
}

function zbootPayload(head: Uint8Array, file: ByteSource): Payload | undefined {
  if (head.length < ZBOOT_HEADER_BYTES) return undefined;
  const header = new Cursor(head, 'EFI zboot image');
  if (header.u16('mark') !== 0x4d5a) return undefined;
  header.skip(2, 'padding');
  if (header.u32('mark') !== ZBOOT_MARK) return undefined;
  const offset = header.u32le('payload offset');
  const bytes = header.u32le('payload size');
  header.skip(8, 'reserved');
  const method = String.fromCharCode(...header.bytes(4, 'compression'));
  if (method !== 'gzip' && method !== 'zstd') {
    throw new BootError(
      'ERR_BOOT_KERNEL',
      `Cannot load kernel: EFI zboot with ${JSON.stringify(method)}, expected gzip or zstd`,
    );
  }
  if (offset > file.length || bytes > file.length - offset) {
    throw new BootError(
      'ERR_BOOT_KERNEL',
      `Cannot load kernel: EFI zboot payload is ${bytes} bytes at ${offset}, file has ${file.length}`,
    );
  }
  return { compression: method, bytes: partOf(file, offset, bytes) };
}

function decompress(payload: Payload, maxBytes: number, decompressors: Decompressors | undefined): Uint8Array {
  const { compression } = payload;
  if (decompressors === undefined) {
    throw new BootError('ERR_BOOT_DECOMPRESS', `Cannot decompress kernel: no ${compression} decompressor is here`);
  }
  if (payload.bytes.length > maxBytes) {
    throw new BootError(
      'ERR_BOOT_DECOMPRESS',
      `Cannot decompress kernel: ${payload.bytes.length} bytes of ${compression} are more than the RAM, ${maxBytes}`,
    );
  }
  const packed = readAll(payload.bytes);
  let bytes: Uint8Array;
  try {
    bytes = compression === 'gzip' ? decompressors.gunzip(packed, maxBytes) : decompressors.unzstd(packed, maxBytes);
  } catch (cause) {
    const found = cause instanceof Error ? cause.message : 'damaged';
    throw new BootError(
      'ERR_BOOT_DECOMPRESS',
      `Cannot decompress kernel (${compression}, limit ${maxBytes} bytes): ${found}`,
      {
        cause,
      },
    );
  }
  if (bytes.length > maxBytes) {
    throw new BootError('ERR_BOOT_DECOMPRESS', `Cannot decompress kernel: over ${maxBytes} bytes, which is the RAM`);
  }
  return bytes;
}

function startsWith(head: Uint8Array, magic: readonly number[]): boolean {
  return head.length >= magic.length && magic.every((byte, index) => head[index] === byte);
}
