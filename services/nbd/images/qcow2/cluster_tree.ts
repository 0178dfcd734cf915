import {
  type ClusterEntry,
  decodeClusterEntry,
  decodeL1Entry,
  hasFeature,
  INCOMPATIBLE,
  type L2Format,
  type Qcow2Header,
} from '../../../../protocols/qcow2/mod.ts';
import type { ImageFile } from './image_file.ts';

/** One L2 table of a tree, as it is in the file */
export interface L2Table {
  /** Of the L1 entry that names it */
  readonly index: number;
  readonly host: number;
  /** As that entry says */
  readonly copied: boolean;
  readonly bytes: Uint8Array;
}

export interface TreeProblem {
  readonly index: number;
  readonly reason: string;
}

export function formatOf(header: Qcow2Header): L2Format {
  return {
    version: header.version,
    clusterBits: header.clusterBits,
    extended: header.extendedL2,
    external: hasFeature(header, INCOMPATIBLE.externalDataFile),
  };
}

/** The L2 tables under an L1 table, one after the other; entries that cannot be followed go to `problem`. */
export async function* l2Tables(
  file: ImageFile,
  header: Qcow2Header,
  l1: Uint8Array,
  problem: (found: TreeProblem) => void,
): AsyncGenerator<L2Table> {
  const view = new DataView(l1.buffer, l1.byteOffset, l1.byteLength);
  for (let index = 0; index < l1.length / 8; index++) {
    const high = view.getUint32(index * 8);
    const low = view.getUint32(index * 8 + 4);
    if (high === 0 && low === 0) continue;
    const entry = decodeL1Entry(high, low, header.clusterBytes);
    if (entry.kind === 'invalid') problem({ index, reason: entry.reason ?? 'an L1 entry' });
    else if (entry.kind === 'data') {
      if (entry.host >= file.sizeBytes) {
        problem({ index, reason: `an L2 table at ${entry.host}, behind the end of the file` });
        continue;
      }
      const bytes = new Uint8Array(header.clusterBytes);
      await file.read(entry.host, bytes);
      yield { index, host: entry.host, copied: entry.copied, bytes };
    }
  }
}

/** The entries of an L2 table that say anything, with their places in the table, in `bytes`. */
export function* l2Entries(bytes: Uint8Array, format: L2Format): Generator<[at: number, entry: ClusterEntry]> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const step = format.extended ? 16 : 8;
  for (let at = 0; at < bytes.length; at += step) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const zeroBits = format.extended ? view.getUint32(at + 8) : 0;
    const allocatedBits = format.extended ? view.getUint32(at + 12) : 0;
    if (high === 0 && low === 0 && zeroBits === 0 && allocatedBits === 0) continue;
    yield [at, decodeClusterEntry(high, low, zeroBits, allocatedBits, format)];
  }
}

/** What of the file an entry refers to: nothing for most zero clusters, and for all in an external file. */
export function referredBytes(entry: ClusterEntry, format: L2Format, clusterBytes: number): number {
  if (entry.kind === 'compressed') return entry.lengthBytes;
  return entry.kind === 'invalid' || entry.host === 0 || format.external === true ? 0 : clusterBytes;
}

export function setCopied(table: Uint8Array, at: number, copied: boolean): void {
  table[at] = copied ? table[at]! | 0x80 : table[at]! & 0x7f;
}
