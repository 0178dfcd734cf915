import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  decodeReplayHeader,
  decodeReplayRecord,
  encodeReplayHeader,
  encodeReplayRecord,
  ReplayDecoder,
  type ReplayRecord,
} from '../../../protocols/replay/mod.ts';
import { refusesEveryTruncation, roundTrips, sameForAnySplit, survivesEveryByteChange } from '../../macros/codec.ts';

const HEADER = {
  shift: 3,
  harts: 2,
  ramBytes: 1 << 30,
  wallNs: 1_767_225_600_000_000_000n,
  seed: Uint8Array.from({ length: 32 }, (_, index) => index),
  guest: 0xdead_beef,
};
const at = { round: 7, ns: 123_456_789_012 };
const RECORDS: ReplayRecord[] = [
  { ...at, kind: 'serial', bytes: Uint8Array.of(104, 105, 13) },
  { ...at, kind: 'console', bytes: Uint8Array.of(0) },
  { ...at, kind: 'key', code: 116, down: true },
  { ...at, kind: 'pointer', x: 32767, y: 0, buttons: 5 },
  { ...at, kind: 'wheel', vertical: -1, horizontal: 2 },
  { ...at, kind: 'disk', disk: 1, failed: false, bytes: new Uint8Array(512).fill(7) },
  { ...at, kind: 'disk', disk: 0, failed: true, bytes: new Uint8Array(0) },
  { ...at, kind: 'wake' },
  { ...at, kind: 'checkpoint', instructions: 2 ** 40, digest: 0xffff_ffff_ffff_ffffn },
  { round: 9, ns: at.ns, kind: 'end', instructions: 5, digest: 1n },
];
/** Without the length in front */
const body = (frame: Uint8Array): Uint8Array => frame.slice(4);
const file = (records: readonly ReplayRecord[] = RECORDS): Uint8Array =>
  new Uint8Array(Buffer.concat([encodeReplayHeader(HEADER), ...records.map(encodeReplayRecord)]));

function readAll(chunks: readonly Uint8Array[]): unknown[] {
  const decoder = new ReplayDecoder();
  const found: unknown[] = [];
  for (const chunk of chunks) {
    decoder.push(chunk);
    for (let record = decoder.next(); record !== undefined; record = decoder.next()) found.push(record);
  }
  decoder.end();
  return [decoder.header(), ...found];
}

test('header and records come back as they were', (t) => {
  roundTrips(t, HEADER, (value) => body(encodeReplayHeader(value)), decodeReplayHeader);
  for (const record of RECORDS) roundTrips(t, record, (value) => body(encodeReplayRecord(value)), decodeReplayRecord);
});

test('decodeReplayHeader() refuses truncations and survives changes', (t) => {
  const bytes = body(encodeReplayHeader(HEADER));
  refusesEveryTruncation(t, bytes, decodeReplayHeader);
  survivesEveryByteChange(t, bytes, decodeReplayHeader);
});

test('decodeReplayRecord() survives changes, and refuses truncations of what has a fixed length', (t) => {
  for (const record of RECORDS) {
    const bytes = body(encodeReplayRecord(record));
    survivesEveryByteChange(t, bytes, decodeReplayRecord);
    if (!['serial', 'console', 'disk'].includes(record.kind)) refusesEveryTruncation(t, bytes, decodeReplayRecord);
  }
});

test('ReplayDecoder gives the same for any split', (t) => {
  sameForAnySplit(t, file([RECORDS[0]!, RECORDS[7]!, RECORDS[9]!]), readAll);
  t.deepEqual(readAll([file()]), [HEADER, ...RECORDS]);
});

test('ReplayDecoder refuses files that were cut off, go back in time, or go on behind their end', (t) => {
  const whole = file();
  for (let length = 0; length < whole.length; length++) {
    const error = t.throws(() => readAll([whole.slice(0, length)]), { instanceOf: WireError }, `cut at ${length}`);
    if (error === undefined) return;
  }
  const back = file([
    { round: 5, ns: 0, kind: 'wake' },
    { round: 4, ns: 0, kind: 'wake' },
  ]);
  t.throws(() => readAll([back]), { instanceOf: WireError, message: /round 4 after 5/ });
  t.throws(() => readAll([file([RECORDS[9]!, RECORDS[9]!])]), { instanceOf: WireError, message: /after the end/ });
});

test('ReplayDecoder refuses lengths and values beyond its limits before it takes memory', (t) => {
  const huge = Buffer.concat([encodeReplayHeader(HEADER), Uint8Array.of(0xff, 0xff, 0xff, 0xff)]);
  t.throws(() => readAll([huge]), { instanceOf: WireError, code: 'ERR_WIRE_LIMIT' });
  const text = encodeReplayRecord({ ...at, kind: 'serial', bytes: new Uint8Array(65_537) });
  t.throws(() => decodeReplayRecord(body(text)), { instanceOf: WireError });
  const disk = encodeReplayRecord({ ...at, kind: 'disk', disk: 64, failed: false, bytes: new Uint8Array(0) });
  t.throws(() => decodeReplayRecord(body(disk)), { instanceOf: WireError });
  const late = body(encodeReplayRecord({ ...at, kind: 'wake' })).fill(0xff, 1, 9);
  t.throws(() => decodeReplayRecord(late), { instanceOf: WireError });
  t.throws(() => decodeReplayHeader(body(encodeReplayHeader({ ...HEADER, shift: 11 }))), { instanceOf: WireError });
  t.throws(() => decodeReplayHeader(body(encodeReplayHeader({ ...HEADER, harts: 9 }))), { instanceOf: WireError });
});
