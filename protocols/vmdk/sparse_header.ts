import { Cursor, Writer } from '../bytes/mod.ts';
import { VMDK_LIMITS } from './limits.ts';

export const VMDK_HEADER_BYTES = 512;
const SECTOR_BYTES = 512;
/** "KDMV" */
const MAGIC = 0x4b44_4d56;
/** "the grain directory is at the end": a footer says where */
const AT_END = 0xffff_ffff_ffff_ffffn;

export const VMDK_FLAG = {
  newLines: 1,
  redundantTables: 2,
  zeroedGrains: 4,
  compressed: 1 << 16,
  markers: 1 << 17,
} as const;

/** The header of a sparse extent ("Hosted Sparse Extent Header"). Offsets and sizes in `bytes`, though sectors in the file */
export interface VmdkSparseHeader {
  readonly version: number;
  readonly flags: number;
  /** Of the extent */
  readonly sizeBytes: number;
  /** A power of two */
  readonly grainBytes: number;
  /** 0: no descriptor inside */
  readonly descriptorOffset: number;
  readonly descriptorBytes: number;
  readonly tableEntries: number;
  /** 0: none */
  readonly redundantDirectoryOffset: number;
  /** Undefined: a footer at the end of the file says it */
  readonly directoryOffset: number | undefined;
  /** What is in front of the first grain */
  readonly overheadBytes: number;
  readonly uncleanShutdown: boolean;
  /** 0 none, 1 deflate */
  readonly compression: number;
}

export function looksLikeVmdkSparse(start: Uint8Array): boolean {
  return start.length >= 4 && new Cursor(start, 'VMDK header').u32('magic') === MAGIC;
}

/** Decodes header or footer of a sparse extent; sizes are within the limits. @throws WireError */
export function decodeVmdkSparseHeader(bytes: Uint8Array): VmdkSparseHeader {
  const cursor = new Cursor(bytes, 'VMDK header');
  const refuse = (why: string) => cursor.error('ERR_WIRE_VALUE', `Cannot use the VMDK header: ${why}`);
  const sectors = (field: string): number => {
    const value = cursor.u64le(field);
    if (value > BigInt(VMDK_LIMITS.sizeBytes / SECTOR_BYTES)) {
      throw cursor.error('ERR_WIRE_LIMIT', `Cannot use the VMDK header: ${field} ${value} sectors`);
    }
    return Number(value) * SECTOR_BYTES;
  };
  cursor.expectU32(MAGIC, 'magic');
  const version = cursor.u32le('version');
  if (version < 1 || version > 3) throw refuse(`version ${version}, expected 1 to 3`);
  const flags = cursor.u32le('flags');
  const sizeBytes = sectors('capacity');
  const grainBytes = sectors('grain size');
  const descriptorOffset = sectors('descriptor offset');
  const descriptorBytes = sectors('descriptor size');
  const tableEntries = cursor.u32le('entries of a grain table');
  const redundantDirectoryOffset = sectors('redundant grain directory');
  const directory = cursor.u64le('grain directory');
  const overheadBytes = sectors('overhead');
  const uncleanShutdown = cursor.u8('unclean shutdown') !== 0;
  // A transfer as text changes these four: the rest of the file is broken then, too.
  const newLines = cursor.u32('new lines');
  if ((flags & VMDK_FLAG.newLines) !== 0 && newLines !== 0x0a20_0d0a) throw refuse('a transfer as text has changed it');
  const compression = cursor.u16le('compression');
  cursor.skip(433, 'padding');
  cursor.end();
  const { minGrainBytes, maxGrainBytes } = VMDK_LIMITS;
  if (grainBytes < minGrainBytes || grainBytes > maxGrainBytes || !Number.isInteger(Math.log2(grainBytes))) {
    throw refuse(`grains of ${grainBytes} bytes, expected a power of two from ${minGrainBytes} to ${maxGrainBytes}`);
  }
  if (tableEntries === 0 || tableEntries > VMDK_LIMITS.tableEntries) {
    throw refuse(`grain tables of ${tableEntries} entries, limit is ${VMDK_LIMITS.tableEntries}`);
  }
  if (compression > 1) throw refuse(`compression ${compression}, expected 0 or 1`);
  if (((flags & VMDK_FLAG.compressed) !== 0) !== (compression === 1)) throw refuse('compression and its flag differ');
  if (descriptorBytes > VMDK_LIMITS.descriptorBytes + 1) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot use the VMDK header: descriptor of ${descriptorBytes} bytes`);
  }
  if (directory !== AT_END && directory > BigInt(VMDK_LIMITS.sizeBytes / SECTOR_BYTES)) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot use the VMDK header: grain directory at sector ${directory}`);
  }
  const directoryBytes = directoryBytesOf({ sizeBytes, grainBytes, tableEntries });
  if (directoryBytes > VMDK_LIMITS.directoryBytes) {
    const text = `Cannot use the VMDK header: grain directory of ${directoryBytes} bytes`;
    throw cursor.error('ERR_WIRE_LIMIT', `${text}, limit is ${VMDK_LIMITS.directoryBytes}`);
  }
  return {
    version,
    flags,
    sizeBytes,
    grainBytes,
    descriptorOffset,
    descriptorBytes,
    tableEntries,
    redundantDirectoryOffset,
    directoryOffset: directory === AT_END ? undefined : Number(directory) * SECTOR_BYTES,
    overheadBytes,
    uncleanShutdown,
    compression,
  };
}

export function encodeVmdkSparseHeader(header: VmdkSparseHeader): Uint8Array<ArrayBuffer> {
  const out = new Writer(VMDK_HEADER_BYTES);
  const sectors = (bytes: number) => out.u64le(BigInt(bytes / SECTOR_BYTES));
  out.u32(MAGIC).u32le(header.version).u32le(header.flags);
  sectors(header.sizeBytes);
  sectors(header.grainBytes);
  sectors(header.descriptorOffset);
  sectors(header.descriptorBytes);
  out.u32le(header.tableEntries);
  sectors(header.redundantDirectoryOffset);
  if (header.directoryOffset === undefined) out.u64le(AT_END);
  else sectors(header.directoryOffset);
  sectors(header.overheadBytes);
  out
    .u8(header.uncleanShutdown ? 1 : 0)
    .u32(0x0a20_0d0a)
    .u16le(header.compression)
    .zeroes(433);
  return out.finish();
}

/** One entry of 4 bytes for each grain table. */
export function directoryBytesOf(header: Pick<VmdkSparseHeader, 'sizeBytes' | 'grainBytes' | 'tableEntries'>): number {
  return Math.ceil(header.sizeBytes / (header.grainBytes * header.tableEntries)) * 4;
}

/** What stands in front of a compressed grain: its place on the disk, and how long it is. */
export const VMDK_GRAIN_MARKER_BYTES = 12;

export function decodeVmdkGrainMarker(bytes: Uint8Array): { offset: bigint; dataBytes: number } {
  const cursor = new Cursor(bytes, 'VMDK grain marker');
  const sector = cursor.u64le('sector');
  return { offset: sector * BigInt(SECTOR_BYTES), dataBytes: cursor.u32le('size') };
}

export function encodeVmdkGrainMarker(offset: number, dataBytes: number): Uint8Array<ArrayBuffer> {
  return new Writer(VMDK_GRAIN_MARKER_BYTES)
    .u64le(BigInt(offset / SECTOR_BYTES))
    .u32le(dataBytes)
    .finish();
}

/** The last 1536 bytes of a stream: footer marker, footer, end-of-stream marker. @throws WireError */
export function decodeVmdkFooter(bytes: Uint8Array): VmdkSparseHeader {
  const cursor = new Cursor(bytes, 'VMDK footer');
  cursor.expectU64(1n << 56n, 'footer marker sectors');
  cursor.expectU32(0, 'footer marker size');
  cursor.expectU32(0x0300_0000, 'footer marker type');
  cursor.skip(496, 'padding');
  const footer = decodeVmdkSparseHeader(cursor.bytes(VMDK_HEADER_BYTES, 'footer'));
  cursor.expectU64(0n, 'end marker sectors');
  cursor.expectU32(0, 'end marker size');
  cursor.expectU32(0, 'end marker type');
  cursor.skip(496, 'padding');
  cursor.end();
  return footer;
}
