import type { VhdxMetadata } from './metadata.ts';

export const VHDX_BAT_ENTRY_BYTES = 8;

/** `hole`: what is under the disk shows; `zero`: reads as zeroes, whatever is under it */
export type VhdxBlockKind = 'hole' | 'zero' | 'data' | 'partial' | 'invalid';

/** MS-VHDX 2.5.1.1: by state. 5 is "unmapped" of an early draft; QEMU knows it, too */
const KINDS: readonly VhdxBlockKind[] = ['hole', 'zero', 'zero', 'zero', 'invalid', 'zero', 'data', 'partial'];

/** One entry of the block allocation table, as its two little-endian halves; `offset` in `bytes` of the file. */
export function decodeVhdxBatEntry(low: number, high: number): { kind: VhdxBlockKind; offset: number } {
  // Bits 20 to 63 are MiB; 2^44 MiB are more than a number counts exactly, and more than any file has.
  return { kind: KINDS[low & 7]!, offset: high * 2 ** 32 + (low >>> 20) * 2 ** 20 };
}

/** Data blocks that one bitmap block covers: after so many entries comes one of a bitmap. */
export function vhdxChunkRatio({ blockBytes, sectorBytes }: Pick<VhdxMetadata, 'blockBytes' | 'sectorBytes'>): number {
  return (2 ** 23 * sectorBytes) / blockBytes;
}

/** Entries that a disk without a parent has, in all. */
export function vhdxBatEntries(metadata: VhdxMetadata): number {
  const blocks = Math.ceil(metadata.sizeBytes / metadata.blockBytes);
  return blocks === 0 ? 0 : blocks + Math.floor((blocks - 1) / vhdxChunkRatio(metadata));
}
