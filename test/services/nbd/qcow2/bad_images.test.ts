import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { WireError } from '../../../../protocols/bytes/mod.ts';
import { ImageError } from '../../../../services/nbd/images/mod.ts';
import { emptyImage, inspectQcow2, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import {
  CLUSTER,
  COMPRESSED,
  COPIED,
  DATA,
  goodQcow2,
  L1,
  L2,
  REFCOUNT_BLOCK,
  REFCOUNT_TABLE,
} from '../../../fixtures/good_qcow2.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

const DISK = 64 << 20;

const directory = mkdtempSync(join(tmpdir(), 'caisson-qcow2-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

/** Header and changes; `expected` is what the error must say. Refused at open, read-only too. */
const badHeaders: readonly [name: string, change: (view: DataView) => void, expected: RegExp][] = [
  ['magic', (v) => v.setUint32(0, 0x514649fa), /magic/],
  ['version 1', (v) => v.setUint32(4, 1), /version 1/],
  ['version 4', (v) => v.setUint32(4, 4), /version 4/],
  ['header_length 0', (v) => v.setUint32(100, 0), /header_length 0/],
  ['header_length 71', (v) => v.setUint32(100, 71), /header_length 71/],
  ['header_length 73', (v) => v.setUint32(100, 73), /header_length 73/],
  ['header_length not x8', (v) => v.setUint32(100, 109), /header_length 109/],
  ['header_length above a cluster', (v) => v.setUint32(100, CLUSTER + 8), /header_length/],
  ['cluster_bits 0', (v) => v.setUint32(20, 0), /cluster_bits 0/],
  ['cluster_bits 8', (v) => v.setUint32(20, 8), /cluster_bits 8/],
  ['cluster_bits 22', (v) => v.setUint32(20, 22), /cluster_bits 22/],
  ['cluster_bits 63', (v) => v.setUint32(20, 63), /cluster_bits 63/],
  ['refcount_order 7', (v) => v.setUint32(96, 7), /refcount_order 7/],
  ['refcount_order 2^32-1', (v) => v.setUint32(96, 0xffff_ffff), /refcount_order/],
  ['l1_size 0 with a size', (v) => v.setUint32(36, 0), /l1_size 0/],
  ['l1_size 2^31', (v) => v.setUint32(36, 2 ** 31), /l1_size 2147483648/],
  ['L1 table unaligned', (v) => v.setBigUint64(40, BigInt(L1 + 512)), /L1 table at/],
  ['L1 table past the end', (v) => v.setBigUint64(40, BigInt(CLUSTER) * 1000n), /L1 table of/],
  ['L1 table at 2^63', (v) => v.setBigUint64(40, 2n ** 63n), /L1 table of/],
  ['L1 table at 0', (v) => v.setBigUint64(40, 0n), /L1 table at 0/],
  ['refcount_table_clusters 0', (v) => v.setUint32(56, 0), /no refcount table/],
  ['refcount_table_clusters 2^31', (v) => v.setUint32(56, 2 ** 31), /refcount table of/],
  ['refcount table at 0', (v) => v.setBigUint64(48, 0n), /refcount table at 0/],
  ['refcount table unaligned', (v) => v.setBigUint64(48, 1000n), /refcount table at 1000/],
  ['65 537 snapshots', (v) => v.setUint32(60, 65_537), /65537 snapshots/],
  [
    'snapshots past the end',
    (v) => {
      v.setUint32(60, 1);
      v.setBigUint64(64, BigInt(CLUSTER) * 99n);
    },
    /snapshot table/,
  ],
  ['size 2^63-1', (v) => v.setBigUint64(24, 2n ** 63n - 1n), /disk of 9223372036854775807/],
  ['crypt_method 3', (v) => v.setUint32(32, 3), /crypt_method 3/],
  ['LUKS without a header', (v) => v.setUint32(32, 2), /encrypted/],
  [
    'backing name of 1024 bytes',
    (v) => {
      v.setBigUint64(8, 1024n);
      v.setUint32(16, 1024);
    },
    /backing file name of 1024/,
  ],
  [
    'backing name outside cluster 0',
    (v) => {
      v.setBigUint64(8, BigInt(CLUSTER + 8));
      v.setUint32(16, 8);
    },
    /backing_file_offset/,
  ],
  [
    'backing name inside the header',
    (v) => {
      v.setBigUint64(8, 8n);
      v.setUint32(16, 8);
    },
    /inside the header/,
  ],
  [
    'extension of 2^32-1 bytes',
    (v) => {
      v.setUint32(112, 0x1234);
      v.setUint32(116, 0xffff_ffff);
    },
    /extension/,
  ],
  [
    'extension twice',
    (v) => {
      v.setUint32(112, 0x1234);
      v.setUint32(120, 0x1234);
    },
    /twice/,
  ],
  ['unknown incompatible bit', (v) => v.setBigUint64(72, 1n << 40n), /unknown incompatible features: bit 40/],
  [
    'extended L2 entries with clusters of 8 KiB',
    (v) => {
      v.setUint32(20, 13);
      v.setBigUint64(72, 16n);
    },
    /extended L2 entries with cluster_bits 13, minimum is 14/,
  ],
  ['external data file', (v) => v.setBigUint64(72, 4n), /external file/],
  ['compression type without its bit', (v) => v.setUint8(104, 1), /compression type/],
  [
    'compression type 2',
    (v) => {
      v.setBigUint64(72, 8n);
      v.setUint8(104, 2);
    },
    /compression type 2/,
  ],
];

for (const [name, change, expected] of badHeaders) {
  test(`Q1 Q2 Q3 a header is refused: ${name}`, async (t) => {
    const { bytes, view } = goodQcow2();
    change(view);
    const file = new LogImageFile(bytes);
    const error = await t.throwsAsync(Qcow2Image.openFile(file, { readOnly: true }), { message: expected });
    t.true(error instanceof WireError || error instanceof ImageError);
    t.true(file.closed);
    t.is(file.log.length, 0);
  });
}

/** A snapshot table where the data cluster is; each field wrong by itself */
const badSnapshots: readonly [name: string, at: number, bytes: number, value: number][] = [
  ['L1 table past the end', 0, 8, 1 << 30],
  ['L1 table unaligned', 0, 8, L1 + 8],
  ['L1 table of 2^32-1 entries', 8, 4, 0xffff_ffff],
  ['extra data of 1025 bytes', 36, 4, 1025],
  ['id longer than the file', 12, 2, 0xffff],
  ['name longer than the file', 14, 2, 0xffff],
];
for (const [name, at, width, value] of badSnapshots) {
  test(`Q12 a snapshot is refused: ${name}`, async (t) => {
    const { bytes } = goodQcow2();
    bytes.fill(0, DATA);
    // The entry, with an L1 table like ours, at the end of the file: nothing follows its 40 bytes.
    const end = bytes.slice(0, DATA + 40);
    const changed = new DataView(end.buffer);
    changed.setUint32(60, 1);
    changed.setBigUint64(64, BigInt(DATA));
    changed.setBigUint64(DATA, BigInt(L1));
    changed.setUint32(DATA + 8, 1);
    const image = await Qcow2Image.openFile(new LogImageFile(end), { readOnly: true });
    t.is(image.snapshots.length, 1);
    if (width === 8) changed.setBigUint64(DATA + at, BigInt(value));
    else if (width === 4) changed.setUint32(DATA + at, value);
    else changed.setUint16(DATA + at, value);
    await t.throwsAsync(Qcow2Image.openFile(new LogImageFile(end), { readOnly: true }), { instanceOf: WireError });
  });
}

test('Q1 an unknown incompatible feature is named from the table in the image', async (t) => {
  const { bytes, view } = goodQcow2();
  view.setBigUint64(72, 1n << 40n);
  view.setUint32(112, 0x6803f857);
  view.setUint32(116, 48);
  bytes.set([0, 40, ...Buffer.from('time travel')], 120);
  await t.throwsAsync(Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: true }), { message: /time travel/ });
});

for (const name of ['nbd://host/', 'json:{"driver":"nbd"}', '/etc/passwd', '../../secret', 'self.qcow2']) {
  test(`Q10, CVE-2015-5163: a backing file is not opened on the word of the image: ${name}`, async (t) => {
    const bytes = emptyImage({ sizeBytes: DISK, backing: { file: name, format: 'raw' } });
    const file = new LogImageFile(bytes);
    await t.throwsAsync(Qcow2Image.openFile(file, { readOnly: true }), {
      message: /has a backing file.*none was given/,
    });
  });
}

/** What is wrong in the tables of an image that opens; reading the first cluster fails, the second stays readable. */
const badEntries: readonly [name: string, change: (view: DataView) => void][] = [
  ['L1 entry to the middle of the header', (v) => v.setBigUint64(L1, COPIED | 512n)],
  ['L1 entry to the L1 table', (v) => v.setBigUint64(L1, BigInt(L1) | COPIED)],
  ['L1 entry to the refcount table', (v) => v.setBigUint64(L1, BigInt(REFCOUNT_TABLE) | COPIED)],
  ['L1 entry with reserved bits', (v) => v.setBigUint64(L1, BigInt(L2) | COPIED | 4n)],
  ['L1 entry past the end', (v) => v.setBigUint64(L1, (BigInt(CLUSTER) * 1000n) | COPIED)],
  ['L1 entry past 2^55', (v) => v.setBigUint64(L1, ((1n << 56n) - BigInt(CLUSTER)) | COPIED)],
  ['L2 entry to the middle of the header', (v) => v.setBigUint64(L2, COPIED | 512n)],
  ['L2 entry to the L1 table', (v) => v.setBigUint64(L2, BigInt(L1) | COPIED)],
  ['L2 entry to its own table', (v) => v.setBigUint64(L2, BigInt(L2) | COPIED)],
  ['L2 entry to a refcount block', (v) => v.setBigUint64(L2, BigInt(REFCOUNT_BLOCK) | COPIED)],
  ['L2 entry unaligned', (v) => v.setBigUint64(L2, BigInt(DATA + 512) | COPIED)],
  ['L2 entry with reserved bits', (v) => v.setBigUint64(L2, BigInt(DATA) | COPIED | (1n << 57n))],
  ['L2 entry past the end', (v) => v.setBigUint64(L2, (BigInt(CLUSTER) * 1000n) | COPIED)],
  [
    'zero flag in version 2',
    (v) => {
      v.setUint32(4, 2);
      v.setBigUint64(72, 0n);
      v.setBigUint64(L2, 1n);
    },
  ],
  ['compressed entry with COPIED', (v) => v.setBigUint64(L2, BigInt(DATA) | COPIED | COMPRESSED)],
  ['compressed entry in metadata', (v) => v.setBigUint64(L2, BigInt(L1 + 100) | COMPRESSED)],
  ['compressed entry past the end', (v) => v.setBigUint64(L2, BigInt(CLUSTER * 7) | COMPRESSED)],
  [
    'compressed entry longer than the file',
    (v) => v.setBigUint64(L2, BigInt(CLUSTER * 6) | COMPRESSED | (0xffn << 54n)),
  ],
  ['compressed data that is not deflate', (v) => v.setBigUint64(L2, BigInt(DATA) | COMPRESSED)],
];

for (const [name, change] of badEntries) {
  test(`Q4 Q9 reads fail with EIO, and the image is left alone: ${name}`, async (t) => {
    const { bytes, view } = goodQcow2();
    change(view);
    const file = new LogImageFile(bytes);
    const image = await Qcow2Image.openFile(file, { readOnly: true });
    const into = new Uint8Array(512);
    t.false(image.readNow(0, into));
    await t.throwsAsync(image.read(0, into), { code: 'EIO' });
    if (!name.startsWith('L1')) await image.read(CLUSTER, into);
    t.is(file.log.length, 0);
  });

  test(`Q9 no write reaches what it must not: ${name}`, async (t) => {
    const { bytes, view } = goodQcow2();
    change(view);
    const before = bytes.slice(0, L2);
    const file = new LogImageFile(bytes);
    let image: Qcow2Image;
    try {
      image = await Qcow2Image.openFile(file, { readOnly: false });
    } catch (error) {
      t.regex(String(error), /corrupt/);
      t.is(file.log.length, 0);
      return;
    }
    await t.throwsAsync(image.write(100, new Uint8Array(512)), { code: 'EIO' });
    t.false(image.readNow(0, new Uint8Array(1)));
    if (name.includes('deflate')) return; // wrong data, but no wrong place
    await t.throwsAsync(image.write(DISK / 2, new Uint8Array(512)), { code: 'EIO' }, 'still written to');
    const after = file.contents.slice(0, L2);
    if (view.getUint32(4) === 3) {
      t.is(after[79], 2, 'the corrupt bit is not set');
      after[79] = 0;
    }
    t.is(Buffer.compare(after, before), 0, 'metadata was overwritten');
  });
}

test('Q9 refcount 0 for metadata stops the first allocation', async (t) => {
  for (const cluster of [0, 1, 2, 3, 4]) {
    const { bytes, view } = goodQcow2();
    view.setUint16(REFCOUNT_BLOCK + cluster * 2, 0);
    const file = new LogImageFile(bytes);
    const image = await Qcow2Image.openFile(file, { readOnly: false });
    await t.throwsAsync(image.write(CLUSTER * 3, new Uint8Array(CLUSTER)), { message: /refcount 0/ });
    t.is(file.contents[79], 2);
  }
});

test('Q9 tables that overlap make an image read-only', async (t) => {
  const changes: readonly ((view: DataView) => void)[] = [
    (v) => v.setBigUint64(REFCOUNT_TABLE, BigInt(L1)),
    (v) => v.setBigUint64(REFCOUNT_TABLE, BigInt(L2)),
    (v) => v.setBigUint64(48, BigInt(L1)),
    (v) => v.setBigUint64(REFCOUNT_TABLE, BigInt(DATA) + 1n),
    (v) => v.setBigUint64(REFCOUNT_TABLE, BigInt(CLUSTER) * 5000n),
  ];
  for (const change of changes) {
    const { bytes, view } = goodQcow2();
    change(view);
    await t.throwsAsync(Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: false }), { message: /corrupt/ });
    const image = await Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: true });
    await image.close();
  }
});

test('Q5 a compressed cluster that inflates to more than a cluster stops there', async (t) => {
  const { deflateRawSync, zstdCompressSync } = await import('node:zlib');
  const bomb = Buffer.alloc(64 << 20);
  for (const [zstd, data] of [
    [false, deflateRawSync(bomb)],
    [true, zstdCompressSync(bomb)],
    [false, deflateRawSync(bomb.subarray(0, 100))],
    [true, zstdCompressSync(bomb.subarray(0, 100))],
  ] as const) {
    const { bytes, view } = goodQcow2();
    bytes.set(data.subarray(0, CLUSTER), DATA);
    view.setBigUint64(L2, BigInt(DATA) | COMPRESSED | (0x7fn << 54n));
    if (zstd) {
      view.setBigUint64(72, 8n);
      view.setUint8(104, 1);
    }
    const image = await Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: true });
    await t.throwsAsync(image.read(0, new Uint8Array(512)), { code: 'EIO', message: /compressed/ });
  }
});

test.serial('every byte of header and tables may change: no crash, no other error, bounded time', async (t) => {
  const places = [
    ...Array.from({ length: 128 }, (_, at) => at),
    ...[REFCOUNT_TABLE, REFCOUNT_BLOCK, L1, L2].flatMap((at) => Array.from({ length: 16 }, (_, index) => at + index)),
  ];
  let opened = 0;
  for (const place of places) {
    for (const flip of [0x01, 0x80, 0xff]) {
      const { bytes } = goodQcow2();
      bytes[place]! ^= flip;
      const startedMs = performance.now();
      try {
        const image = await Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: place % 2 === 0 });
        opened++;
        await image.read(0, new Uint8Array(4096));
        if (!image.readOnly) {
          await image.write(3000, new Uint8Array(100_000));
          await image.flush();
        }
        await image.blockStatus(0, image.sizeBytes, 16);
      } catch (error) {
        if (!(error instanceof WireError || error instanceof ImageError)) t.fail(`byte ${place}: ${String(error)}`);
      }
      const elapsedMs = performance.now() - startedMs;
      t.true(elapsedMs < 2000, `byte ${place} took ${elapsedMs} ms`);
    }
  }
  t.true(opened > 50);
});

test('every truncation of the file gives an image or an error', async (t) => {
  const { bytes } = goodQcow2();
  for (const length of [
    0,
    1,
    3,
    4,
    23,
    24,
    71,
    72,
    103,
    104,
    111,
    112,
    120,
    CLUSTER,
    REFCOUNT_BLOCK,
    L1,
    L1 + 8,
    L2,
    DATA,
  ]) {
    try {
      const image = await Qcow2Image.openFile(new LogImageFile(bytes.subarray(0, length)), { readOnly: true });
      await t.throwsAsync(image.read(0, new Uint8Array(1)), { code: 'EIO' });
    } catch (error) {
      t.true(error instanceof WireError || error instanceof ImageError, `${length}: ${String(error)}`);
    }
  }
});

test('a FIFO, a directory and an empty file are no qcow2 images', async (t) => {
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const empty = join(directory, 'empty');
  writeFileSync(empty, '');
  for (const path of [fifo, directory, empty]) {
    await t.throwsAsync(Qcow2Image.open(path, { readOnly: true }));
    await t.throwsAsync(inspectQcow2(path));
  }
});

test('a file that shrinks while open gives EIO, not zeroes', async (t) => {
  const path = join(directory, 'shrinks.qcow2');
  writeFileSync(path, goodQcow2().bytes);
  const image = await Qcow2Image.open(path, { readOnly: true });
  await image.read(0, new Uint8Array(512));
  truncateSync(path, DATA);
  await t.throwsAsync(image.read(0, new Uint8Array(512)), { code: 'EIO' });
  await image.close();
});
