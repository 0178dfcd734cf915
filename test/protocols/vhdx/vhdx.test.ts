import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  crc32c,
  decodeVhdxBatEntry,
  decodeVhdxHeader,
  decodeVhdxLogEntry,
  decodeVhdxMetadata,
  decodeVhdxRegionTable,
  isWholeVhdxLogEntry,
  looksLikeVhdx,
  peekVhdxLogEntry,
  vhdxBatEntries,
  vhdxChunkRatio,
} from '../../../protocols/vhdx/mod.ts';
import {
  VHDX_DISK_BYTES,
  VHDX_LOG_GUID,
  vhdxHeader,
  vhdxImage,
  vhdxItems,
  vhdxLogEntry,
  vhdxMetadata,
  vhdxRegionTable,
  withCrc,
} from '../../fixtures/vhdx_image.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';

const MIB = 1 << 20;
const LOG_BYTES = MIB;

test('crc32c() gives the value of RFC 3720 for 32 zeroes and for "123456789"', (t) => {
  t.is(crc32c(new Uint8Array(32)), 0x8a9136aa);
  t.is(crc32c(new TextEncoder().encode('123456789')), 0xe3069283);
  t.is(crc32c(Uint8Array.of(1, 2, 3, 4, 5), 1), crc32c(Uint8Array.of(1, 0, 0, 0, 0)));
});

test('decodeVhdxHeader() reads sequence and log, refuses every truncation, survives every byte change', (t) => {
  t.deepEqual(decodeVhdxHeader(vhdxHeader(9n, { logGuid: true })), {
    sequence: 9n,
    logGuid: VHDX_LOG_GUID,
    logOffset: MIB,
    logBytes: MIB,
  });
  refusesEveryTruncation(t, vhdxHeader(1n), decodeVhdxHeader);
  // Only the fields: the rest of the 4096 bytes is reserved.
  const whole = (start: Uint8Array): Uint8Array => {
    const bytes = vhdxHeader(1n);
    bytes.set(start);
    return withCrc(bytes);
  };
  survivesEveryByteChange(t, vhdxHeader(1n).slice(0, 96), (bytes) => decodeVhdxHeader(whole(bytes)));
  t.throws(() => decodeVhdxHeader(vhdxHeader(1n).fill(1, 90, 91)), {
    instanceOf: WireError,
    code: 'ERR_WIRE_CHECKSUM',
  });
  t.throws(() => decodeVhdxHeader(vhdxHeader(1n, { logBytes: 1 << 30 })), { code: 'ERR_WIRE_LIMIT' });
});

test('decodeVhdxRegionTable() reads its regions, survives every byte change, refuses truncations', (t) => {
  t.deepEqual(
    decodeVhdxRegionTable(vhdxRegionTable()).map((region) => [region.offset, region.lengthBytes, region.required]),
    [
      [2 * MIB, MIB, true],
      [3 * MIB, MIB, true],
    ],
  );
  const whole = (start: Uint8Array): Uint8Array => {
    const bytes = vhdxRegionTable();
    bytes.set(start);
    return withCrc(bytes);
  };
  survivesEveryByteChange(t, vhdxRegionTable().slice(0, 96), (bytes) => decodeVhdxRegionTable(whole(bytes)));
  refusesEveryTruncation(t, vhdxRegionTable().slice(0, 80), decodeVhdxRegionTable);
});

const BAT = '2dc27766-f623-4200-9d64-115e9bfd4a08';
for (const [name, regions, expected] of [
  [
    'the same GUID twice',
    [
      { guid: BAT, offset: 2 * MIB },
      { guid: BAT, offset: 3 * MIB },
    ],
    /twice/,
  ],
  [
    'two regions that overlap',
    [
      { guid: BAT, offset: 2 * MIB },
      { guid: VHDX_LOG_GUID, offset: 2 * MIB },
    ],
    /overlap/,
  ],
  ['a region in the header section', [{ guid: BAT, offset: 0 }], /at 0/],
  ['a region not at a MiB', [{ guid: BAT, offset: 2 * MIB + 512 }], /whole MiB/],
  ['a region of no bytes', [{ guid: BAT, offset: 2 * MIB, bytes: 0 }], /region of 0 bytes/],
  ['an unknown region that is required', [{ guid: VHDX_LOG_GUID, offset: 2 * MIB, required: true }], /unknown region/],
] as const) {
  test(`§8.3 VHDX: decodeVhdxRegionTable() refuses ${name}`, (t) => {
    const table = vhdxRegionTable(regions.map((region) => ({ bytes: MIB, ...region })));
    t.throws(() => decodeVhdxRegionTable(table), { instanceOf: WireError, message: expected });
  });
}

test('§8.3 VHDX: decodeVhdxRegionTable() refuses 2048 entries, and a wrong checksum', (t) => {
  const many = vhdxRegionTable();
  new DataView(many.buffer).setUint32(8, 2048, true);
  t.throws(() => decodeVhdxRegionTable(withCrc(many)), { code: 'ERR_WIRE_LIMIT' });
  t.throws(() => decodeVhdxRegionTable(vhdxRegionTable().fill(1, 60_000)), { code: 'ERR_WIRE_CHECKSUM' });
});

test('decodeVhdxMetadata() reads the disk, and survives every byte change of table and items', (t) => {
  t.deepEqual(decodeVhdxMetadata(vhdxMetadata()), {
    sizeBytes: VHDX_DISK_BYTES,
    blockBytes: MIB,
    sectorBytes: 512,
    fixed: false,
    hasParent: false,
  });
  const whole = (start: Uint8Array): Uint8Array => {
    const bytes = vhdxMetadata();
    bytes.set(start);
    return bytes;
  };
  survivesEveryByteChange(t, vhdxMetadata().slice(0, 192), (bytes) => decodeVhdxMetadata(whole(bytes)));
  const items = (start: Uint8Array): Uint8Array => {
    const bytes = vhdxMetadata();
    bytes.set(start, 64 << 10);
    return bytes;
  };
  const at = 64 << 10;
  survivesEveryByteChange(t, vhdxMetadata().slice(at, at + 40), (bytes) => decodeVhdxMetadata(items(bytes)));
  refusesEveryTruncation(t, vhdxMetadata().slice(0, 190), decodeVhdxMetadata);
});

type Items = ReturnType<typeof vhdxItems>;
const set32 = (bytes: Uint8Array, at: number, value: number): undefined =>
  void new DataView(bytes.buffer).setUint32(at, value, true);
const badItems: readonly [name: string, change: (items: Items) => Items | undefined, expected: RegExp][] = [
  ['a huge block size', (items) => set32(items[0]!.bytes, 0, 2 ** 31), /blocks of 2147483648/],
  ['block size 0', (items) => set32(items[0]!.bytes, 0, 0), /blocks of 0/],
  ['a block size that is no power of two', (items) => set32(items[0]!.bytes, 0, 3 * MIB), /blocks of 3145728/],
  ['a disk above 64 TiB', (items) => set32(items[1]!.bytes, 4, 1 << 16), /disk of 281474978/],
  ['a disk of half a sector', (items) => set32(items[1]!.bytes, 0, 256), /not whole sectors/],
  ['sectors of 1024 bytes', (items) => set32(items[3]!.bytes, 0, 1024), /sectors of 1024/],
  ['an item twice', (items) => [...items, items[1]!], /virtual disk size twice/],
  ['no virtual disk size', (items) => items.toSpliced(1, 1), /virtual disk size is missing/],
  ['an unknown item that is required', (items) => [...items, { ...items[0]!, guid: VHDX_LOG_GUID }], /unknown item/],
  ['an item of the wrong length', (items) => items.with(0, { ...items[0]!, bytes: new Uint8Array(9) }), /of 9 bytes/],
];
for (const [name, change, expected] of badItems) {
  test(`§8.3 VHDX: decodeVhdxMetadata() refuses ${name}`, (t) => {
    const items = vhdxItems();
    const metadata = vhdxMetadata(change(items) ?? items);
    t.throws(() => decodeVhdxMetadata(metadata), { instanceOf: WireError, message: expected });
  });
}

test('BAT entries and chunks are counted as the specification does', (t) => {
  t.deepEqual(decodeVhdxBatEntry(6 | (5 << 20), 1), { kind: 'data', offset: 2 ** 32 + 5 * MIB });
  t.deepEqual(
    [0, 1, 2, 3, 4, 5, 6, 7].map((state) => decodeVhdxBatEntry(state, 0).kind),
    ['hole', 'zero', 'zero', 'zero', 'invalid', 'zero', 'data', 'partial'],
  );
  const metadata = { sizeBytes: 2 ** 40, blockBytes: 32 * MIB, sectorBytes: 512, fixed: false, hasParent: false };
  t.is(vhdxChunkRatio(metadata), 128);
  t.is(vhdxBatEntries(metadata), 32_768 + 255);
  t.is(vhdxBatEntries({ ...metadata, sizeBytes: 0 }), 0);
});

test('a log entry keeps its changes, is seen to be whole, and every byte change is found by its checksum', (t) => {
  const data = Uint8Array.from({ length: 4096 }, (_, index) => (index * 7) & 0xff);
  const entry = vhdxLogEntry(5, 4096, [
    { offset: 2 * MIB, data },
    { offset: 3 * MIB, zeroBytes: 8192 },
  ]);
  const header = peekVhdxLogEntry(entry, LOG_BYTES)!;
  t.like(header, { sequence: 5n, tail: 4096, descriptors: 2, entryBytes: 8192, logGuid: VHDX_LOG_GUID });
  t.true(isWholeVhdxLogEntry(entry, header));
  t.deepEqual(decodeVhdxLogEntry(entry, header), [
    { kind: 'data', offset: 2 * MIB, bytes: data },
    { kind: 'zero', offset: 3 * MIB, lengthBytes: 8192 },
  ]);
  for (const index of [70, 200, 5000, 8191]) {
    const changed = entry.slice();
    changed[index]! ^= 1;
    t.false(isWholeVhdxLogEntry(changed, header), `${index}`);
  }
  // Someone who knows the checksum gets no further than an error.
  survivesEveryByteChange(t, entry.slice(0, 128), (start) => {
    const bytes = entry.slice();
    bytes.set(start);
    const peeked = peekVhdxLogEntry(bytes, LOG_BYTES);
    return peeked === undefined ? undefined : decodeVhdxLogEntry(bytes, peeked);
  });
  refusesEveryTruncation(t, entry, (bytes) => decodeVhdxLogEntry(bytes, header));
  refusesEveryTruncation(t, entry.slice(0, 64), (bytes) => peekVhdxLogEntry(bytes, LOG_BYTES));
});

test('looksLikeVhdx() looks at the signature', (t) => {
  t.true(looksLikeVhdx(vhdxImage()));
  t.false(looksLikeVhdx(new Uint8Array(8)));
  t.false(looksLikeVhdx(new Uint8Array(3)));
});
