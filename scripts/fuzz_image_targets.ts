import { decodeLuksHeader, encodeLuksHeader, luksMaterialOffset } from '../protocols/luks/mod.ts';
import * as qcow2 from '../protocols/qcow2/mod.ts';
import { decodeVmdkDescriptor, decodeVmdkSparseHeader, encodeVmdkDescriptor } from '../protocols/vmdk/mod.ts';
import { emptyImage } from '../services/nbd/images/qcow2/mod.ts';
import type { FuzzTarget } from './fuzz_targets.ts';

// What disk images say of themselves; small clusters, so that much of a header is in the bytes that are changed.

const CLUSTER = 512;
const FILE_BYTES = 2 ** 40;
const MIB = 1 << 20;

const image = (options: Partial<Parameters<typeof emptyImage>[0]> = {}): Uint8Array =>
  emptyImage({ sizeBytes: 8 * MIB, clusterBytes: CLUSTER, ...options }).slice(0, CLUSTER);

const qcow2Header: FuzzTarget = {
  name: 'qcow2-header',
  seeds: () => [
    image(),
    image({ version: 2 }),
    image({ backing: { file: 'base.raw', format: 'raw' }, lazyRefcounts: true }),
    image({ dataFile: { file: 'data.raw', raw: true } }),
    image({ clusterBytes: 16_384, extendedL2: true, compression: 'zstd' }),
  ],
  run(input) {
    const bytes = qcow2.peekClusterBytes(input.subarray(0, qcow2.QCOW2_PEEK_BYTES));
    const header = qcow2.decodeHeader(input.subarray(0, bytes), FILE_BYTES);
    if (header.l1Offset + header.l1Entries * 8 > FILE_BYTES) throw new Error('an L1 table behind the end of the file');
    // What was understood can be written again.
    if (header.clusterBytes <= input.length) {
      try {
        qcow2.encodeHeaderArea(header, () => CLUSTER);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
  },
};

const header = qcow2.decodeHeader(image(), FILE_BYTES);
const snapshot: qcow2.Qcow2Snapshot = {
  id: '1',
  name: 'first',
  l1Offset: 4 * CLUSTER,
  l1Entries: 2,
  dateSeconds: 1,
  dateNanoseconds: 2,
  vmClock: 3n,
  vmStateBytes: 0n,
  diskBytes: BigInt(MIB),
  raw: {
    id: Uint8Array.of(49),
    name: new TextEncoder().encode('first'),
    furtherExtra: new Uint8Array(8),
    incomplete: false,
  },
};

const qcow2Snapshots: FuzzTarget = {
  name: 'qcow2-snapshots',
  seeds: () => [qcow2.encodeSnapshotTable([snapshot]), qcow2.encodeSnapshotTable([snapshot, snapshot, snapshot])],
  run(input) {
    const table = qcow2.decodeSnapshotTable(input, { ...header, snapshotCount: (input[0] ?? 0) + 1 }, FILE_BYTES);
    if (table.lengthBytes > input.length)
      throw new Error(`a table of ${table.lengthBytes} bytes out of ${input.length}`);
  },
};

const bitmap: qcow2.Qcow2Bitmap = {
  name: 'b0',
  tableOffset: 4 * CLUSTER,
  tableEntries: 3,
  inUse: false,
  auto: true,
  granularityBits: 16,
};

const qcow2Bitmaps: FuzzTarget = {
  name: 'qcow2-bitmaps',
  // The first byte says what it is: a table of bits, or a directory of so many bitmaps.
  seeds: () => [
    Uint8Array.of(1, ...qcow2.encodeBitmapDirectory([bitmap]).bytes),
    Uint8Array.of(2, ...qcow2.encodeBitmapDirectory([bitmap, { ...bitmap, name: 'b1', inUse: true }]).bytes),
    Uint8Array.of(0, ...qcow2.encodeBitmapTable(['zeroes', 'ones', { host: 8 * CLUSTER }])),
  ],
  run(input) {
    const [count = 0] = input;
    const bytes = input.subarray(1);
    if (count === 0) qcow2.decodeBitmapTable(bytes.subarray(0, bytes.length & ~7), CLUSTER, FILE_BYTES);
    else {
      const place = { count, directoryBytes: bytes.length, directoryOffset: CLUSTER };
      qcow2.decodeBitmapDirectory(bytes, place, CLUSTER, FILE_BYTES);
    }
  },
};

const luksHeader: FuzzTarget = {
  name: 'luks-header',
  seeds: () => [
    encodeLuksHeader({
      hash: 'sha256',
      keyBytes: 64,
      payloadOffset: luksMaterialOffset(8, 64),
      digest: new Uint8Array(20).fill(1),
      digestSalt: new Uint8Array(32).fill(2),
      digestIterations: 1000,
      uuid: '00000000-0000-4000-8000-000000000000',
      slots: [0, 1].map(() => ({ iterations: 2000, salt: new Uint8Array(32).fill(3) })),
      materialOffsets: Array.from({ length: 8 }, (_, slot) => luksMaterialOffset(slot, 64)),
    }),
  ],
  run(input) {
    const { slots, materialOffsets } = decodeLuksHeader(input, 4 << 20);
    const used = materialOffsets.filter((_, index) => slots[index] !== undefined);
    if (used.some((offset) => offset > 4 << 20)) throw new Error('a key outside');
  },
};

const vmdk: FuzzTarget = {
  name: 'vmdk-descriptor',
  seeds: () =>
    (['monolithicSparse', 'streamOptimized'] as const).map((createType) =>
      new TextEncoder().encode(encodeVmdkDescriptor({ cid: 7, createType, sizeBytes: MIB, name: 'disk.vmdk' })),
    ),
  run(input) {
    // One of the two is what it is; the other refuses it.
    if (input[0] === 0x4b) decodeVmdkSparseHeader(input);
    else decodeVmdkDescriptor(input);
  },
};

export const FUZZ_IMAGE_TARGETS: readonly FuzzTarget[] = [qcow2Header, qcow2Snapshots, qcow2Bitmaps, luksHeader, vmdk];
