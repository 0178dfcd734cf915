// What a client makes of extended replies: the server is the enemy here.
import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  type BlockStatus,
  CMD,
  type Completion,
  decodeBlockStatusFilter,
  decodeExtendedBlockStatus,
  decodeExtendedChunkHeader,
  decodeExtendedRequest,
  EXTENDED_CHUNK_HEADER_BYTES,
  encodeBlockStatus,
  encodeBlockStatusFilter,
  encodeChunkHeader,
  encodeExtendedBlockStatus,
  encodeExtendedRequest,
  encodeSimpleReply,
  putExtendedChunkHeader,
  REPLY_TYPE,
  ReplyAssembler,
} from '../../../protocols/nbd/mod.ts';
import { refusesEveryTruncation, roundTrips, sameForAnySplit, survivesEveryByteChange } from '../../macros/codec.ts';

interface ExtendedChunk {
  readonly type: number;
  readonly cookie?: bigint;
  readonly offset?: bigint;
  readonly payload?: Uint8Array;
  readonly length?: number;
  readonly done?: boolean;
}

/** One chunk, the last of its reply unless said otherwise, for cookie 1 at offset 4096. */
function chunk(it: ExtendedChunk): Uint8Array {
  const payload = it.payload ?? new Uint8Array(0);
  const bytes = new Uint8Array(EXTENDED_CHUNK_HEADER_BYTES + payload.length);
  const header = {
    flags: it.done === false ? 0 : 1,
    type: it.type,
    cookie: it.cookie ?? 1n,
    length: it.length ?? payload.length,
  };
  putExtendedChunkHeader(new DataView(bytes.buffer), 0, header, it.offset ?? 4096n);
  bytes.set(payload, EXTENDED_CHUNK_HEADER_BYTES);
  return bytes;
}

const joined = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));
const dataAt = (offset: bigint, bytes: number[], done = true): Uint8Array => {
  const payload = new Uint8Array(8 + bytes.length);
  new DataView(payload.buffer).setBigUint64(0, offset);
  payload.set(bytes, 8);
  return chunk({ type: REPLY_TYPE.OFFSET_DATA, payload, done });
};
const status: BlockStatus = {
  contextId: 3,
  extents: [
    { lengthBytes: 2 ** 40, flags: 3 },
    { lengthBytes: 4096, flags: 0 },
  ],
};

function run(chunks: Uint8Array[], request: Partial<{ type: number; length: number; ids: Set<number> }> = {}) {
  const assembler = new ReplyAssembler({ structured: true, extended: true, contextIds: [3, 4] });
  const into = new Uint8Array(8);
  assembler.expect({
    cookie: 1,
    type: request.type ?? CMD.READ,
    offset: 4096,
    length: request.length ?? 8,
    into,
    ...(request.ids === undefined ? {} : { contextIds: request.ids }),
  });
  const completions: Completion[] = [];
  for (const bytes of chunks) completions.push(...assembler.push(bytes));
  return { completions, into: [...into] };
}

test('an extended block status survives a round trip, every truncation and every changed byte', (t) => {
  roundTrips(t, status, encodeExtendedBlockStatus, decodeExtendedBlockStatus);
  refusesEveryTruncation(t, encodeExtendedBlockStatus(status), decodeExtendedBlockStatus);
  survivesEveryByteChange(t, encodeExtendedBlockStatus(status), decodeExtendedBlockStatus);
});

test('an extended reply header is 32 bytes, and refuses every truncation', (t) => {
  const bytes = chunk({ type: REPLY_TYPE.NONE, cookie: 9n, offset: 1n << 62n });
  t.is(bytes.length, 32);
  t.deepEqual(decodeExtendedChunkHeader(bytes), { flags: 1, type: 0, cookie: 9n, offset: 1n << 62n, length: 0 });
  refusesEveryTruncation(t, bytes, decodeExtendedChunkHeader);
  survivesEveryByteChange(t, bytes, decodeExtendedChunkHeader);
});

test('an extended request survives a round trip and every truncation', (t) => {
  const request = { flags: 32, type: 1, cookie: 5n, offset: 1n << 50n, length: 4096 };
  const bytes = encodeExtendedRequest({ ...request, length: 4096n });
  t.deepEqual(decodeExtendedRequest(bytes), request);
  refusesEveryTruncation(t, bytes, decodeExtendedRequest);
});

test('T14: the payload of BLOCK_STATUS survives a round trip', (t) => {
  const filter = { lengthBytes: 2 ** 45, contextIds: [2, 1] };
  t.deepEqual(decodeBlockStatusFilter(encodeBlockStatusFilter(filter), 2), filter);
  refusesEveryTruncation(t, encodeBlockStatusFilter({ ...filter, contextIds: [2] }), (bytes) =>
    decodeBlockStatusFilter(bytes, 2),
  );
});

test('extended data and block status are put together at any split', (t) => {
  sameForAnySplit(
    t,
    joined(dataAt(4100n, [5, 6, 7, 8], false), dataAt(4096n, [1, 2, 3, 4], false), chunk({ type: REPLY_TYPE.NONE })),
    (chunks) => run(chunks),
  );
  const { into, completions } = run([dataAt(4096n, [1, 2, 3, 4, 5, 6, 7, 8])]);
  t.deepEqual(into, [1, 2, 3, 4, 5, 6, 7, 8]);
  t.is(completions[0]?.error, undefined);
});

const bad: [string, Uint8Array[], { type?: number; ids?: Set<number> }?][] = [
  ['C5: another offset than the request’s', [chunk({ type: REPLY_TYPE.NONE, offset: 4097n })]],
  ['C5: an unknown cookie', [chunk({ type: REPLY_TYPE.NONE, cookie: 2n })]],
  ['C5: a structured header', [encodeChunkHeader({ flags: 1, type: 0, cookie: 1n, length: 0 }), new Uint8Array(12)]],
  ['C5: a simple reply', [encodeSimpleReply({ error: 22, cookie: 1n }), new Uint8Array(16)]],
  ['C3: a length of 2^64-1', [chunk({ type: REPLY_TYPE.OFFSET_DATA, length: 2 ** 63 })]],
  ['C3: more data than was asked for', [dataAt(4096n, [1, 2, 3, 4, 5, 6, 7, 8, 9])]],
  ['C3: an error text of 2^40 bytes', [chunk({ type: REPLY_TYPE.ERROR, length: 2 ** 40 })]],
  [
    'C3: 2^20+1 extents',
    [chunk({ type: REPLY_TYPE.BLOCK_STATUS_EXT, length: 8 + 16 * ((1 << 20) + 1) })],
    { type: CMD.BLOCK_STATUS },
  ],
  [
    'C5: block status of 32 bits',
    [
      chunk({
        type: REPLY_TYPE.BLOCK_STATUS,
        payload: encodeBlockStatus({ contextId: 3, extents: [status.extents[1]!] }),
      }),
    ],
    { type: CMD.BLOCK_STATUS },
  ],
  [
    'C5, CVE-2023-5871: one of two contexts',
    [chunk({ type: REPLY_TYPE.BLOCK_STATUS_EXT, payload: encodeExtendedBlockStatus(status) })],
    { type: CMD.BLOCK_STATUS },
  ],
  [
    'C5: a context that this request did not ask for',
    [chunk({ type: REPLY_TYPE.BLOCK_STATUS_EXT, payload: encodeExtendedBlockStatus(status) })],
    { type: CMD.BLOCK_STATUS, ids: new Set([4]) },
  ],
];
for (const [what, chunks, request] of bad) {
  test(`an extended reply is refused: ${what}`, (t) => {
    t.throws(() => run(chunks, request), { instanceOf: WireError });
  });
}

test('an extended block status with the one context that was asked for is taken', (t) => {
  const reply = chunk({ type: REPLY_TYPE.BLOCK_STATUS_EXT, payload: encodeExtendedBlockStatus(status) });
  const { completions } = run([reply], { type: CMD.BLOCK_STATUS, ids: new Set([3]) });
  t.deepEqual(completions[0]?.extents.get(3), status.extents);
});

test('CVE-2025-47711: extents of 64 bits are cut to what a number holds, statuses that lose bits are refused', (t) => {
  const bytes = encodeExtendedBlockStatus({ contextId: 3, extents: [{ lengthBytes: 1, flags: 0 }] });
  new DataView(bytes.buffer).setBigUint64(8, (1n << 64n) - 1n);
  t.is(decodeExtendedBlockStatus(bytes).extents[0]!.lengthBytes, Number.MAX_SAFE_INTEGER);
  new DataView(bytes.buffer).setBigUint64(16, 1n << 60n);
  t.throws(() => decodeExtendedBlockStatus(bytes), { code: 'ERR_WIRE_LIMIT' });
});

test('C5: extended block status whose count and length differ is refused', (t) => {
  for (const count of [0, 1, 3, 0xffff_ffff]) {
    const bytes = encodeExtendedBlockStatus(status);
    new DataView(bytes.buffer).setUint32(4, count);
    t.throws(() => decodeExtendedBlockStatus(bytes), { instanceOf: WireError }, String(count));
  }
});

test('data of a READ can be read to where it belongs, and is not copied then', (t) => {
  const lengthBytes = 100_000;
  for (const memory of [new ArrayBuffer(lengthBytes + 7), new SharedArrayBuffer(lengthBytes + 7)]) {
    const into = new Uint8Array(memory, 7, lengthBytes);
    const assembler = new ReplyAssembler({ structured: true, extended: true, contextIds: [] });
    assembler.expect({ cookie: 1, type: CMD.READ, offset: 4096, length: lengthBytes, into });
    t.is(assembler.room(), undefined, 'a header comes first');
    const bytes = chunk({ type: REPLY_TYPE.OFFSET_DATA, length: lengthBytes + 8 });
    t.deepEqual(assembler.push(bytes), []);
    t.is(assembler.room(), undefined, 'the offset');
    const offset = new Uint8Array(8);
    new DataView(offset.buffer).setBigUint64(0, 4096n);
    assembler.push(offset);
    // Some of it behind the offset, in a buffer of the stream's
    assembler.push(new Uint8Array(1000).fill(3));
    let done: Completion[] = [];
    let at = 1000;
    for (let room = assembler.room(); room !== undefined; room = assembler.room()) {
      t.is(room.buffer, memory);
      t.is(room.byteOffset, 7 + at);
      t.is(room.length, lengthBytes - at);
      const piece = room.subarray(0, 30_000);
      piece.fill(5);
      done = assembler.push(piece);
      at += piece.length;
    }
    t.is(at, 91_000, 'what is left is not worth a read of its own');
    done = assembler.push(new Uint8Array(9000).fill(7));
    t.is(done[0]?.cookie, 1);
    t.deepEqual([into[0], into[999], into[1000], into[90_999], into[91_000], into.at(-1)], [3, 3, 5, 5, 7, 7]);
    t.is(assembler.room(), undefined);
  }
});
