import test from 'ava';
import fc from 'fast-check';
import {
  CMD,
  encodeRequest,
  type PayloadBuffers,
  type ReceivedRequest,
  RequestDecoder,
  TRANSMISSION_FLAG,
} from '../../../protocols/nbd/mod.ts';

const MIB = 1 << 20;
const terms = {
  sizeBytes: 64n << 20n,
  flags: TRANSMISSION_FLAG.HAS_FLAGS,
  blockSizes: { minimum: 1, preferred: 4096, maximum: 32 << 20 },
  structured: false,
  contexts: 0,
  maxPayloadBytes: 32 << 20,
};

const contents = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 31 + (index >> 8) + seed) & 0xff);

function writeBytes(offset: number, data: Uint8Array): Uint8Array {
  const header = encodeRequest({ flags: 0, type: CMD.WRITE, cookie: 7n, offset: BigInt(offset), length: data.length });
  const bytes = new Uint8Array(header.length + data.length);
  bytes.set(header);
  bytes.set(data, header.length);
  return bytes;
}

/** Counts what is taken and given; `idle` are buffers that exist already. */
class Buffers implements PayloadBuffers {
  readonly taken: number[] = [];
  readonly given: Uint8Array[] = [];
  readonly idle: Uint8Array[] = [];

  take(lengthBytes: number): Uint8Array {
    this.taken.push(lengthBytes);
    return new Uint8Array(lengthBytes);
  }
  takeIdle(lengthBytes: number): Uint8Array | undefined {
    const at = this.idle.findIndex(({ length }) => length >= lengthBytes);
    return at < 0 ? undefined : this.idle.splice(at, 1)[0];
  }
  give(buffer: Uint8Array): void {
    this.given.push(buffer);
  }
}

/** As a socket does: reads at most `most` bytes, to where the decoder wants them, and lends what it keeps itself. */
function feed(decoder: RequestDecoder, stream: Uint8Array, sizes: Iterable<number>): ReceivedRequest[] {
  const own = new Uint8Array(256 * 1024);
  const found: ReceivedRequest[] = [];
  let at = 0;
  for (const most of sizes) {
    const room = decoder.room();
    const into = room === undefined ? own : typeof room === 'number' ? own.subarray(0, room) : room;
    const count = Math.min(most, into.length, stream.length - at);
    into.set(stream.subarray(at, at + count));
    at += count;
    decoder.push(into.subarray(0, count), into.buffer === own.buffer);
    for (let next = decoder.next(); next !== undefined; next = decoder.next()) {
      found.push({ ...next, payload: next.payload.slice() });
    }
    decoder.keep();
    own.fill(0xee); // what was lent is gone
    if (at === stream.length) break;
  }
  return found;
}

test('a large payload is read straight into its buffer, whatever the pieces', (t) => {
  const payloads = [contents(300_000, 1), contents(5, 2), contents(MIB, 3), contents(4096, 4), contents(700_001, 5)];
  const stream = Buffer.concat(payloads.map((payload, index) => writeBytes(index * MIB, payload)));
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 300_000 }), { minLength: 1, maxLength: 40 }), (sizes) => {
      function* forever(): Generator<number> {
        for (let turn = 0; turn < 3_000_000; turn++) yield sizes[turn % sizes.length]! + (turn > 500 ? 4096 : 0);
      }
      const found = feed(new RequestDecoder(terms, new Buffers()), stream, forever());
      t.is(found.length, payloads.length);
      for (const [index, { payload }] of found.entries()) t.true(Buffer.from(payload).equals(payloads[index]!));
    }),
    { numRuns: 15 },
  );
});

test('small requests in memory that comes again are what was sent, whatever their sizes and pieces', (t) => {
  const sizes = fc.array(fc.constantFrom(1, 2, 100, 4096), { minLength: 1, maxLength: 60 });
  const pieces = fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 20 });
  fc.assert(
    fc.property(sizes, pieces, (lengths, each) => {
      const payloads = lengths.map((length, index) => contents(length, index));
      const stream = Buffer.concat(payloads.map((payload, index) => writeBytes(index * 4096 + 1, payload)));
      function* forever(): Generator<number> {
        for (let turn = 0; turn < 1_000_000; turn++) yield each[turn % each.length]!;
      }
      const found = feed(new RequestDecoder(terms, new Buffers()), stream, forever());
      if (found.length !== payloads.length) return false;
      return found.every(
        ({ header, payload }, index) =>
          header.offset === BigInt(index * 4096 + 1) && Buffer.from(payload).equals(payloads[index]!),
      );
    }),
    { numRuns: 200 },
  );
  t.pass();
});

test('payloads of one size in memory that comes again are the same views, and those in other memory are not', (t) => {
  const decoder = new RequestDecoder(terms, new Buffers());
  const own = new Uint8Array(64 * 1024);
  const payloadsOf = (chunk: Uint8Array, borrowed: boolean): Uint8Array[] => {
    decoder.push(chunk, borrowed);
    const found: Uint8Array[] = [];
    for (let next = decoder.next(); next !== undefined; next = decoder.next()) found.push(next.payload);
    decoder.keep();
    return found;
  };
  const stream = Buffer.concat([writeBytes(0, contents(4096, 1)), writeBytes(4096, contents(4096, 2))]);
  own.set(stream);
  const first = payloadsOf(own.subarray(0, stream.length), true);
  const again = payloadsOf(own.subarray(0, stream.length), true);
  t.is(again[0], first[0]);
  t.is(again[1], first[1]);
  own.set(stream, 100);
  const moved = payloadsOf(own.subarray(100, 100 + stream.length), true);
  t.deepEqual(moved[0], contents(4096, 1));
  const other = payloadsOf(Uint8Array.from(stream), false);
  t.not(other[0]?.buffer, own.buffer);
  t.deepEqual(other[1], contents(4096, 2));
});

test('only the rest of a large payload is asked for by its place', (t) => {
  const decoder = new RequestDecoder(terms, new Buffers());
  t.is(decoder.room(), undefined);
  const stream = writeBytes(0, contents(MIB, 1));
  decoder.push(stream.subarray(0, 28 + 1000));
  t.is(decoder.next(), undefined);
  const room = decoder.room();
  if (!(room instanceof Uint8Array)) return t.fail('expected a place');
  // Not more than has been allocated, and that not before it has come: 256 KiB of the announced 1 MiB.
  t.is(room.length, 256 * 1024 - 1000);
  t.true(decoder.isMidRequest);
  t.false(decoder.hasInput);
  // Behind a large one the next header is read with little behind it.
  const small = new RequestDecoder(terms, new Buffers());
  small.push(writeBytes(0, contents(4096, 1)).subarray(0, 100));
  t.is(small.next(), undefined);
  t.is(small.room(), undefined);
});

test('a buffer of the right size that exists is used, and its payload not copied as it grows', (t) => {
  const buffers = new Buffers();
  buffers.idle.push(new Uint8Array(2 * MIB));
  const decoder = new RequestDecoder(terms, buffers);
  decoder.push(writeBytes(0, contents(MIB, 1)).subarray(0, 50));
  decoder.next();
  const room = decoder.room();
  t.is(room instanceof Uint8Array && room.length, MIB - 22);
  t.deepEqual(buffers.taken, []);
});

test('what the stream may still write into is not given back when the session ends', (t) => {
  const buffers = new Buffers();
  const decoder = new RequestDecoder(terms, buffers);
  decoder.push(writeBytes(0, contents(MIB, 1)).subarray(0, 5000));
  decoder.next();
  t.true(decoder.room() instanceof Uint8Array);
  decoder.close();
  t.deepEqual(buffers.given, []);
  // Where it was not lent, it is.
  const other = new RequestDecoder(terms, buffers);
  other.push(writeBytes(0, contents(MIB, 1)).subarray(0, 5000));
  other.next();
  other.close();
  t.is(buffers.given.length, 1);
});

test('a payload that is whole waits as input, and owes nothing', (t) => {
  const decoder = new RequestDecoder(terms, new Buffers());
  const stream = writeBytes(0, contents(256 * 1024, 9));
  decoder.push(stream.subarray(0, 5000));
  decoder.next();
  const room = decoder.room() as Uint8Array;
  room.set(stream.subarray(5000));
  decoder.push(room);
  t.true(decoder.hasInput);
  t.false(decoder.isMidRequest);
  t.is(decoder.room(), undefined);
  t.deepEqual(Buffer.from(decoder.next()!.payload), Buffer.from(contents(256 * 1024, 9)));
});
