import process from 'node:process';
import test from 'ava';
import { WireError } from '../../../../protocols/bytes/mod.ts';
import { ImageError, MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { openVhdxFile } from '../../../../services/nbd/images/vhdx/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';
import {
  VHDX_AT,
  VHDX_DISK_BYTES,
  type VhdxChange,
  vhdxHeader,
  vhdxImage,
  vhdxItems,
  vhdxLogEntry,
  vhdxMetadata,
  vhdxRegionTable,
  withCrc,
} from '../../../fixtures/vhdx_image.ts';

const MIB = 1 << 20;
const readOnly = { readOnly: true };
const open = (bytes: Uint8Array) => openVhdxFile(new LogImageFile(bytes), readOnly);

async function firstByte(bytes: Uint8Array, offset = 0): Promise<number> {
  const image = await open(bytes);
  const into = new Uint8Array(4096);
  await image.read(offset, into);
  return into[0]!;
}

test('a dynamic image reads its blocks, and zeroes where there is none', async (t) => {
  const image = await open(vhdxImage());
  t.is(image.sizeBytes, VHDX_DISK_BYTES);
  const into = new Uint8Array(1024);
  await image.read(MIB - 512, into);
  t.deepEqual(into, new Uint8Array(1024).fill(0x11, 0, 512));
  t.true(image.readNow(MIB - 512, into));
  t.deepEqual(await image.blockStatus(0, 2 * MIB, 10), [
    { lengthBytes: MIB, flags: 0 },
    { lengthBytes: MIB, flags: 3 },
  ]);
});

test('images are not opened for writing, nor over a backing file', async (t) => {
  await t.throwsAsync(openVhdxFile(new LogImageFile(vhdxImage()), { readOnly: false }), { message: /only read/ });
  const backing = new MemoryImage(MIB);
  await t.throwsAsync(openVhdxFile(new LogImageFile(vhdxImage()), { readOnly: true, backing }), {
    message: /differencing VHDX images are not supported/,
  });
});

test('of two headers the newer counts, and one that is torn does not', async (t) => {
  const torn = vhdxImage();
  torn.fill(0xee, VHDX_AT.headers[1] + 100, VHDX_AT.headers[1] + 110);
  t.is(await firstByte(torn), 0x11);
  const both = torn.slice();
  both.fill(0xee, VHDX_AT.headers[0] + 100, VHDX_AT.headers[0] + 110);
  await t.throwsAsync(open(both), { instanceOf: WireError, code: 'ERR_WIRE_CHECKSUM' });
});

test('of two region tables the first good one counts', async (t) => {
  const torn = vhdxImage();
  torn.fill(0xee, VHDX_AT.regions[0] + 20, VHDX_AT.regions[0] + 30);
  t.is(await firstByte(torn), 0x11);
  torn.fill(0xee, VHDX_AT.regions[1] + 20, VHDX_AT.regions[1] + 30);
  await t.throwsAsync(open(torn), { instanceOf: WireError });
});

const regions = (list: { guid: string; offset: number; bytes: number }[]) => (bytes: Uint8Array) => {
  for (const at of VHDX_AT.regions) bytes.set(vhdxRegionTable(list), at);
  return bytes;
};
const BAT = '2dc27766-f623-4200-9d64-115e9bfd4a08';
const METADATA = '8b7ca206-4790-4b9a-b8fe-575f050f886e';
const bat = { guid: BAT, offset: VHDX_AT.bat, bytes: MIB };
const metadata = { guid: METADATA, offset: VHDX_AT.metadata, bytes: MIB };

const bad: readonly [name: string, change: (bytes: Uint8Array) => Uint8Array | undefined, expected: RegExp][] = [
  ['empty file', () => new Uint8Array(0), /0 bytes/],
  ['file of one byte', () => new Uint8Array(1), /1 bytes/],
  ['signature', (bytes) => void bytes.fill(0, 0, 1), /not "vhdxfile"/],
  ['headers only', (bytes) => bytes.slice(0, MIB), /behind the end/],
  ['no BAT region', regions([metadata]), /no block allocation table/],
  ['no metadata region', regions([bat]), /no metadata/],
  ['BAT region behind the end', regions([{ ...bat, offset: 2 ** 40 }, metadata]), /behind the end/],
  ['metadata region behind the end', regions([bat, { ...metadata, offset: 2 ** 40 }]), /behind the end/],
  ['metadata region over the log', regions([bat, { ...metadata, offset: VHDX_AT.log }]), /log overlaps/],
  [
    'disk too large for its BAT',
    (bytes) => {
      const items = vhdxItems();
      new DataView(items[1]!.bytes.buffer).setBigUint64(0, 2n ** 46n, true);
      bytes.set(vhdxMetadata(items), VHDX_AT.metadata);
      return undefined;
    },
    /needs 537001976/,
  ],
  [
    'differencing disk',
    (bytes) => {
      const items = vhdxItems();
      items[0]!.bytes[4] = 2;
      bytes.set(vhdxMetadata(items), VHDX_AT.metadata);
      return undefined;
    },
    /differencing disk/,
  ],
  [
    'log behind the end',
    (bytes) => {
      const header = vhdxHeader(9n, { logGuid: true });
      new DataView(header.buffer).setBigUint64(72, BigInt(2 ** 40), true);
      bytes.set(withCrc(header), VHDX_AT.headers[0]);
      return undefined;
    },
    /log at 1099511627776/,
  ],
];

for (const [name, change, expected] of bad) {
  test(`§8.3 VHDX: a bad image is refused: ${name}`, async (t) => {
    const bytes = vhdxImage();
    const file = new LogImageFile(change(bytes) ?? bytes);
    const error = await t.throwsAsync(openVhdxFile(file, readOnly), { message: expected });
    t.true(error instanceof WireError || error instanceof ImageError);
    t.true(file.closed);
    t.is(file.log.length, 0);
  });
}

for (const [name, entry] of [
  ['in the headers', 6n],
  ['in the log', BigInt(VHDX_AT.log) | 6n],
  ['in the BAT', BigInt(VHDX_AT.bat) | 6n],
  ['in the metadata', BigInt(VHDX_AT.metadata) | 6n],
  ['behind the end', BigInt(VHDX_AT.data + MIB) | 6n],
  ['at 2^63', (1n << 63n) | 6n],
  ['of a state that is none', BigInt(VHDX_AT.data) | 4n],
  ['partly present without a parent', BigInt(VHDX_AT.data) | 7n],
] as const) {
  test(`§8.3 VHDX: a block ${name} gives EIO when read, and the others stay readable`, async (t) => {
    const bytes = vhdxImage();
    new DataView(bytes.buffer).setBigUint64(VHDX_AT.bat + 8, entry, true);
    const image = await open(bytes);
    const into = new Uint8Array(512);
    await image.read(0, into);
    await t.throwsAsync(image.read(MIB, into), { instanceOf: ImageError, code: 'EIO' });
    t.false(image.readNow(MIB, into));
  });
}

/** A BAT of one entry more, as the log would write it: the second block is where the first is */
function batSector(): Uint8Array {
  const data = new Uint8Array(4096);
  const view = new DataView(data.buffer);
  view.setBigUint64(0, BigInt(VHDX_AT.data) | 6n, true);
  view.setBigUint64(8, BigInt(VHDX_AT.data) | 6n, true);
  return data;
}
const newBat: VhdxChange = { offset: VHDX_AT.bat, data: batSector() };

function joined(...entries: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(entries));
}

test('a log that was not replayed is replayed in memory, and the file stays as it is', async (t) => {
  const bytes = vhdxImage(vhdxLogEntry(7, 0, [newBat]));
  const file = new LogImageFile(bytes);
  const image = await openVhdxFile(file, readOnly);
  t.is(image.map.details.logEntries, 1);
  const into = new Uint8Array(512);
  await image.read(MIB, into);
  t.is(into[0], 0x11);
  t.true(image.readNow(MIB + 4000, into));
  t.is(into[0], 0x11);
  t.is(file.log.length, 0);
  t.deepEqual(file.contents, bytes);
});

test('entries of one sequence are replayed in order, zeroes and data', async (t) => {
  const filled = { offset: VHDX_AT.data, data: new Uint8Array(4096).fill(0x22) };
  const zeroed = { offset: VHDX_AT.data, zeroBytes: 8192 };
  const first = vhdxLogEntry(1, 0, [zeroed, newBat]);
  const log = joined(first, vhdxLogEntry(2, 0, [filled]));
  const image = await open(vhdxImage(log));
  t.is(image.map.details.logEntries, 2);
  const into = new Uint8Array(12_288);
  await image.read(MIB, into);
  t.is(into[0], 0x22);
  t.is(into[4096], 0);
  t.is(into[8192], 0x11);
});

test('what is in front of the tail was replayed before, and a gap ends a sequence', async (t) => {
  const bad = { offset: VHDX_AT.data, data: new Uint8Array(4096).fill(0x66) };
  const tailSecond = joined(vhdxLogEntry(1, 0, [bad]), vhdxLogEntry(2, 8192, [newBat]));
  const image = await open(vhdxImage(tailSecond));
  t.is(image.map.details.logEntries, 1);
  t.is(await firstByte(vhdxImage(tailSecond)), 0x11);
  // 1 and 3: the newer sequence is the entry 3 by itself.
  const gap = joined(vhdxLogEntry(1, 0, [bad]), vhdxLogEntry(3, 8192, [newBat]));
  t.is((await open(vhdxImage(gap))).map.details.logEntries, 1);
  t.is(await firstByte(vhdxImage(gap)), 0x11);
});

test('an entry that goes on at the start of the log is whole', async (t) => {
  const entry = vhdxLogEntry(4, MIB - 4096, [newBat]);
  const log = new Uint8Array(MIB);
  log.set(entry.subarray(0, 4096), MIB - 4096);
  log.set(entry.subarray(4096), 0);
  t.is(await firstByte(vhdxImage(log), MIB), 0x11);
});

test('an entry that was torn while written counts for nothing', async (t) => {
  const entry = vhdxLogEntry(4, 0, [newBat]);
  entry.fill(0, 6000);
  const image = await open(vhdxImage(entry));
  t.is(image.map.details.logEntries, 0);
  t.is(await firstByte(vhdxImage(entry), MIB), 0);
});

const badLogs: readonly [name: string, log: Uint8Array, expected: RegExp][] = [
  ['a change in the headers', vhdxLogEntry(1, 0, [{ offset: 64 << 10, zeroBytes: 4096 }]), /in the headers/],
  ['a change in the log itself', vhdxLogEntry(1, 0, [{ offset: VHDX_AT.log, zeroBytes: 4096 }]), /log itself/],
  [
    'a change that reaches into the log',
    vhdxLogEntry(1, 0, [{ offset: VHDX_AT.log, zeroBytes: 2 * MIB }]),
    /log itself/,
  ],
  ['a change behind the end', vhdxLogEntry(1, 0, [{ offset: 2 ** 40, zeroBytes: 4096 }]), /behind the end/],
  [
    'a change at 2^63',
    (() => {
      const entry = vhdxLogEntry(1, 0, [newBat]);
      new DataView(entry.buffer).setBigUint64(64 + 16, 2n ** 63n, true);
      return withCrc(entry);
    })(),
    /9223372036854775808/,
  ],
  [
    'a change not at a sector',
    vhdxLogEntry(1, 0, [{ offset: VHDX_AT.data + 512, zeroBytes: 4096 }]),
    /not at a sector/,
  ],
  [
    'zeroes without end',
    vhdxLogEntry(1, 0, [{ offset: 2 * MIB, zeroBytes: 2 ** 40 }], { flushed: MIB, last: 2 ** 41 }),
    /zeroes more than/,
  ],
  ['a file that was cut off', vhdxLogEntry(1, 0, [newBat], { flushed: 50 * MIB, last: 50 * MIB }), /cut off/],
  [
    'descriptors of another entry',
    (() => {
      const entry = vhdxLogEntry(1, 0, [newBat]);
      entry[64 + 24] = 9;
      return withCrc(entry);
    })(),
    /descriptor of another entry/,
  ],
  [
    'data of another entry',
    (() => {
      const entry = vhdxLogEntry(1, 0, [newBat]);
      entry[8191] = 9;
      return withCrc(entry);
    })(),
    /data sector of another entry/,
  ],
];
for (const [name, log, expected] of badLogs) {
  test(`§8.3 VHDX: a log is refused: ${name}`, async (t) => {
    const error = await t.throwsAsync(open(vhdxImage(log)), { message: expected });
    t.true(error instanceof WireError || error instanceof ImageError);
  });
}

test('§8.3 VHDX: a sequence that runs in a loop is walked once', async (t) => {
  // The whole log is entries whose numbers go on for ever, as far as the ring shows.
  const log = new Uint8Array(MIB);
  for (let index = 0; index < MIB / 4096; index++) log.set(vhdxLogEntry(index + 1, 0, []), index * 4096);
  const image = await open(vhdxImage(log));
  t.is(image.map.details.logEntries, MIB / 4096);
});

test('§8.3 VHDX: entries that claim the whole log each cost a bounded number of checksums', async (t) => {
  const log = new Uint8Array(MIB);
  const claim = vhdxLogEntry(1, 0, []);
  new DataView(claim.buffer).setUint32(8, MIB, true);
  for (let at = 0; at < MIB; at += 4096) log.set(claim, at);
  const started = process.threadCpuUsage();
  await t.throwsAsync(open(vhdxImage(log)), { message: /tangle/ });
  // What one processor worked, in microseconds: other programs do not count.
  t.true(process.threadCpuUsage(started).user < 2_000_000);
});
