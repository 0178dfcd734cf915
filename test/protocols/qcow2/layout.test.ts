import test from 'ava';
import { WireError, Writer } from '../../../protocols/bytes/mod.ts';
import {
  decodeBitmapDirectory,
  decodeHeader,
  decodeL2Entry,
  decodeSubcluster,
  encodeEntry,
  encodeHeader,
  maxRefcount,
  readRefcount,
  refcountsPerBlock,
  writeRefcount,
  zstdFrameBytes,
} from '../../../protocols/qcow2/mod.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';

const fields = {
  version: 3 as const,
  clusterBits: 16,
  sizeBytes: 1 << 30,
  backingFile: 'base image.raw',
  backingFormat: 'raw',
  encryption: 0 as const,
  l1Entries: 2,
  l1Offset: 0x30000,
  refcountTableOffset: 0x10000,
  refcountTableClusters: 1,
  refcountOrder: 4,
  snapshotCount: 0,
  snapshotsOffset: 0,
  incompatibleFeatures: 0n,
  compatibleFeatures: 1n,
  autoclearFeatures: 0n,
  compression: 'zlib' as const,
};
const FILE_BYTES = 1 << 20;

test('Q1 encodeHeader() and decodeHeader() agree, versions 2 and 3', (t) => {
  for (const version of [2, 3] as const) {
    const wanted = { ...fields, version, compatibleFeatures: version === 2 ? 0n : 1n };
    const header = decodeHeader(encodeHeader(wanted), FILE_BYTES);
    t.like(header, wanted);
    t.is(header.headerBytes, version === 2 ? 72 : 112);
  }
});

test('Q1 decodeHeader() refuses every truncation, and survives every change of a byte', (t) => {
  const bytes = encodeHeader(fields);
  refusesEveryTruncation(t, bytes, (cut) => decodeHeader(cut, FILE_BYTES));
  survivesEveryByteChange(t, bytes, (changed) => decodeHeader(changed, FILE_BYTES));
});

test('Q4 decodeL2Entry() reads what encodeEntry() wrote, above 4 GiB too', (t) => {
  const format = { version: 3, clusterBits: 16, extended: false } as const;
  for (const host of [0x50000, 0x1_2345_0000, 2 ** 52]) {
    for (const copied of [false, true]) {
      for (const zero of [false, true]) {
        const { high, low } = encodeEntry(host, { copied, zero });
        const mapping = decodeL2Entry(high, low, format);
        t.deepEqual(mapping, { kind: zero ? 'zero' : 'data', host, lengthBytes: 65_536, copied });
      }
    }
  }
});

test('Q5 decodeL2Entry() finds compressed data of any cluster size', (t) => {
  for (let clusterBits = 9; clusterBits <= 21; clusterBits++) {
    // Offset 0x1_0000_0123 and one further sector: 1024 bytes less what precedes it in its first.
    const x = BigInt(62 - (clusterBits - 8));
    const entry = (1n << 62n) | (1n << x) | 0x1_0000_0123n;
    const mapping = decodeL2Entry(Number(entry >> 32n), Number(entry & 0xffff_ffffn), {
      version: 3,
      clusterBits,
      extended: false,
    });
    t.like(mapping, { kind: 'compressed', host: 0x1_0000_0123, lengthBytes: 1024 - 0x123 });
  }
});

test('Q6 decodeSubcluster() refuses what is both allocated and zero, and bitmaps on compressed clusters', (t) => {
  const data = { kind: 'data', host: 0x40000, lengthBytes: 65_536, copied: true } as const;
  t.is(decodeSubcluster(data, 0b10, 0b11, 1, 16).kind, 'invalid');
  t.like(decodeSubcluster(data, 0b10, 0b01, 0, 16), { kind: 'data', host: 0x40000, lengthBytes: 2048 });
  t.is(decodeSubcluster(data, 0b10, 0b01, 1, 16).kind, 'zero');
  t.is(decodeSubcluster(data, 0b10, 0b01, 2, 16).kind, 'unallocated');
  t.is(decodeSubcluster({ ...data, kind: 'unallocated', host: 0 }, 0, 1, 0, 16).kind, 'invalid');
  t.is(decodeSubcluster({ ...data, kind: 'compressed' }, 0, 1, 0, 16).kind, 'invalid');
  t.is(decodeSubcluster({ ...data, kind: 'compressed' }, 0, 0, 9, 16).kind, 'compressed');
});

test('Q7 refcounts of every width keep to their bits, and refuse more', (t) => {
  for (let order = 0; order <= 6; order++) {
    const block = new DataView(new ArrayBuffer(512));
    const count = refcountsPerBlock(512, order);
    t.is(count, 4096 / 2 ** order);
    const max = maxRefcount(order);
    for (const index of [1, 7, count - 1]) writeRefcount(block, index, order, max);
    for (const index of [1, 7, count - 1]) t.is(readRefcount(block, index, order), max);
    for (const index of [0, 2, 6, 8, count - 2]) t.is(readRefcount(block, index, order), 0);
    t.throws(() => writeRefcount(block, 0, order, max + 1), { instanceOf: RangeError });
    t.throws(() => writeRefcount(block, 0, order, -1), { instanceOf: RangeError });
  }
  // "If refcount_bits is less than 8, the least significant bits of a byte come first."
  const block = new DataView(new ArrayBuffer(512));
  writeRefcount(block, 1, 0, 1);
  writeRefcount(block, 9, 1, 3);
  t.deepEqual([block.getUint8(0), block.getUint8(2)], [0b10, 0b1100]);
});

function directory(
  change: { granularity?: number; flags?: number; name?: string; extra?: number; type?: number } = {},
) {
  const { granularity = 16, flags = 2, name = 'b0', extra = 0, type = 1 } = change;
  const out = new Writer().u64(0x20000n).u32(1).u32(flags).u8(type).u8(granularity);
  out.u16(name.length).u32(extra).zeroes(extra).utf8(name);
  return out.zeroes(-out.length & 7).finish();
}
const extension = { count: 1, directoryBytes: 0, directoryOffset: 0 };

test('Q13 decodeBitmapDirectory() lists, and refuses what it does not know', (t) => {
  t.deepEqual(decodeBitmapDirectory(directory(), extension, 65_536, FILE_BYTES), [
    { name: 'b0', tableOffset: 0x20000, tableEntries: 1, inUse: false, auto: true, granularityBits: 16 },
  ]);
  for (const [what, change] of [
    ['a bitmap of granularity 64', { granularity: 64 }],
    ['a bitmap of granularity 8', { granularity: 8 }],
    ['an unknown flag', { flags: 8 }],
    ['a bitmap whose name has a NUL', { name: 'a\0b' }],
    ['a bitmap without a name', { name: '' }],
    ['extra data', { extra: 8 }],
    ['an unknown type', { type: 2 }],
  ] as const) {
    const bytes = directory(change);
    t.throws(() => decodeBitmapDirectory(bytes, extension, 65_536, FILE_BYTES), { instanceOf: WireError }, what);
  }
  t.throws(() => decodeBitmapDirectory(directory(), extension, 65_536, 0x20000), { instanceOf: WireError });
  survivesEveryByteChange(t, directory(), (bytes) => decodeBitmapDirectory(bytes, extension, 65_536, FILE_BYTES));
});

test('Q5 zstdFrameBytes() ends at the frame, and not in a cut one', (t) => {
  // Magic, single segment of 5 bytes, one raw block "hello" that is the last, then what is no part of it.
  const frame = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 5, (5 << 3) | 1, 0, 0, ...new TextEncoder().encode('hello')];
  t.is(zstdFrameBytes(Uint8Array.from([...frame, 1, 2, 3])), frame.length);
  t.is(zstdFrameBytes(Uint8Array.from([0, 0, ...frame]), 2), frame.length);
  for (let cut = 0; cut < frame.length; cut++) t.is(zstdFrameBytes(Uint8Array.from(frame.slice(0, cut))), undefined);
});
