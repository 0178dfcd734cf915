import { crc32 as zlibCrc32 } from 'node:zlib';
import test from 'ava';
import fc from 'fast-check';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  crc32,
  crc32Shift,
  decodeRecord,
  decodeRecordHeader,
  encodeRecord,
  MigrationFrames,
  RECORD_HEADER_BYTES,
  RecordKind,
  RecordOrder,
} from '../../../protocols/migration/mod.ts';
import { refusesEveryTruncation, sameForAnySplit, survivesEveryByteChange } from '../../macros/codec.ts';

test('crc32() is the CRC-32 of zlib, for any length and seed', (t) => {
  t.is(crc32(new TextEncoder().encode('123456789')), 0xcbf4_3926); // the check value of the CRC catalogue
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.integer({ min: 0, max: 0xffff_ffff }), (bytes, seed) => {
      return crc32(bytes, seed) === zlibCrc32(bytes, seed);
    }),
  );
  t.pass();
});

test('crc32Shift() joins the checksums of neighbours', (t) => {
  for (const length of [1, 7, 4096]) {
    const shift = crc32Shift(length);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 50 }), fc.uint8Array({ minLength: length, maxLength: length }), (a, b) => {
        const whole = new Uint8Array([...a, ...b]);
        return (shift(crc32(a)) ^ crc32(b)) >>> 0 === zlibCrc32(whole);
      }),
      { numRuns: 20 },
    );
  }
  t.pass();
});

const FIELDS = { kind: RecordKind.zero, block: 2, pass: 7, firstPage: 0x1_0000_0001, pageCount: 300, sequence: 9 };

test('encodeRecord() gives the bytes that the format says', (t) => {
  const bytes = encodeRecord(FIELDS, new Uint8Array(0));
  const without = bytes.slice();
  without.fill(0, 32, 36);
  t.is(new DataView(bytes.buffer).getUint32(32, true), zlibCrc32(without));
  t.is(
    Buffer.from(without).toString('hex'),
    [
      '434d4947', // magic "CMIG"
      '01', // version
      '02', // kind ZERO
      '0000', // flags
      '0200', // block
      '0000', // reserved
      '07000000', // pass
      '0100000001000000', // first page
      '2c010000', // page count
      '00000000', // payload length
      '00000000', // CRC-32
      '09000000', // sequence
    ].join(''),
  );
});

test('a record comes back as it was sent', (t) => {
  fc.assert(
    fc.property(
      fc.record({
        block: fc.integer({ min: 0, max: 0xffff }),
        pass: fc.integer({ min: 0, max: 0xffff_ffff }),
        firstPage: fc.integer({ min: 0, max: 2 ** 40 - 1 }),
        pageCount: fc.integer({ min: 1, max: 3 }),
        sequence: fc.integer({ min: 0, max: 0xffff_ffff }),
      }),
      (fields) => {
        const payload = new Uint8Array(fields.pageCount * 4096).map((_, index) => index * 31);
        const decoded = decodeRecord(encodeRecord({ ...fields, kind: RecordKind.raw }, payload));
        const { crc, payloadBytes, ...rest } = decoded.header;
        t.deepEqual(rest, { ...fields, kind: RecordKind.raw });
        t.is(payloadBytes, payload.length);
        t.deepEqual(decoded.payload, payload);
        return crc >= 0;
      },
    ),
    { numRuns: 20 },
  );
});

test('decodeRecord() refuses every truncation and survives every change', (t) => {
  const zero = encodeRecord(FIELDS, new Uint8Array(0));
  refusesEveryTruncation(t, zero, decodeRecord);
  survivesEveryByteChange(t, zero, decodeRecord);
  for (let at = 0; at < RECORD_HEADER_BYTES; at++) {
    const changed = zero.slice();
    changed[at]! ^= 0x10;
    t.throws(() => decodeRecord(changed), { instanceOf: WireError }, `byte ${at}: the checksum covers all`);
  }
});

test('decodeRecordHeader() refuses a length before any payload is there', (t) => {
  const raw = encodeRecord({ ...FIELDS, kind: RecordKind.raw, pageCount: 1 }, new Uint8Array(4096));
  for (const length of [0, 1, 4095, 4097, 1 << 20, (1 << 20) + 1, 2 ** 31, 2 ** 32 - 1]) {
    const changed = raw.slice(0, RECORD_HEADER_BYTES);
    new DataView(changed.buffer).setUint32(28, length, true);
    t.throws(() => decodeRecordHeader(changed), { instanceOf: WireError }, `${length}`);
  }
});

test('MigrationFrames gives the same frames for any split', (t) => {
  const stream = new Uint8Array([
    ...[4, 0, 0, 0, 0x2a, 0x02, 0x0a, 0x00], // Refuse with one empty reason
    ...encodeRecord(FIELDS, new Uint8Array(0)),
    ...[2, 0, 0, 0, 0x72, 0x00], // Commit
  ]);
  sameForAnySplit(t, stream, (chunks) => {
    const frames = new MigrationFrames();
    const seen: string[] = [];
    for (const chunk of chunks) {
      frames.push(chunk);
      for (let frame = frames.next(); frame !== undefined; frame = frames.next()) {
        seen.push(frame.kind === 'control' ? frame.message.kind : `record of ${frame.bytes.length}`);
      }
    }
    return seen;
  });
});

test('RecordOrder bounds the work of a pass by RAM, whatever is sent', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ firstPage: fc.integer({ min: 0, max: 40 }), pageCount: fc.integer({ min: 1, max: 40 }) }), {
        maxLength: 30,
      }),
      (runs) => {
        const order = new RecordOrder({ blockPages: [32] });
        order.beginPass(1);
        let sequence = 0;
        for (const run of runs) {
          try {
            order.accept({ ...run, kind: RecordKind.zero, block: 0, pass: 1, payloadBytes: 0, crc: 0, sequence });
            sequence++;
          } catch (error) {
            if (!(error instanceof WireError)) throw error;
          }
        }
        return order.pages <= 32;
      },
    ),
  );
  t.pass();
});
