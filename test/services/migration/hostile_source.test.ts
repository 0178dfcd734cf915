import { createHash } from 'node:crypto';
import test, { type ExecutionContext } from 'ava';
import {
  type ControlKind,
  type ControlMessage,
  DEVICE_STATE_CHUNK_BYTES,
  RecordKind,
} from '../../../protocols/migration/mod.ts';
import { encodeMessagePack } from '../../../services/shared/messagepack.ts';
import {
  type DestinationResult,
  encodePieces,
  makeRecord,
  type Piece,
  playSource,
  RAM_PAGES,
  recordSource,
  smallDestination,
} from '../../fixtures/migration_session.ts';

const GOLDEN = recordSource();
const CLEAN = smallDestination().digest();

function kindOf(piece: Piece): ControlKind | 'record' {
  return piece instanceof Uint8Array ? 'record' : piece.kind;
}

/** The first message of a kind, with some fields changed. */
function change<Kind extends ControlKind>(
  pieces: readonly Piece[],
  kind: Kind,
  fields: Partial<Extract<ControlMessage, { kind: Kind }>>,
): Piece[] {
  const at = pieces.findIndex((piece) => kindOf(piece) === kind);
  return pieces.with(at, { ...(pieces[at] as ControlMessage), ...fields } as ControlMessage);
}

function before(pieces: readonly Piece[], kind: ControlKind | 'record', ...added: Piece[]): Piece[] {
  return pieces.toSpliced(
    pieces.findIndex((piece) => kindOf(piece) === kind),
    0,
    ...added,
  );
}

function without(pieces: readonly Piece[], kind: ControlKind): Piece[] {
  return pieces.filter((piece) => kindOf(piece) !== kind);
}

/** All records replaced by these. */
function records(pieces: readonly Piece[], ...own: Uint8Array[]): Piece[] {
  const at = pieces.findIndex((piece) => kindOf(piece) === 'record');
  return pieces.filter((piece) => kindOf(piece) !== 'record').toSpliced(at, 0, ...own);
}

/** The device state replaced, its digest made right: only its content is wrong. */
function withState(pieces: readonly Piece[], state: Uint8Array): Piece[] {
  const parts: Piece[] = [];
  for (let offset = 0; offset < state.length; offset += DEVICE_STATE_CHUNK_BYTES) {
    const chunk = state.subarray(offset, offset + DEVICE_STATE_CHUNK_BYTES);
    parts.push({ kind: 'deviceState', offset, totalBytes: state.length, chunk });
  }
  const devices = new Uint8Array(createHash('sha256').update(state).digest());
  return change(before(without(pieces, 'deviceState'), 'digest', ...parts), 'digest', { devices });
}

const CONFIG = { machine: 'fake', ramBytes: RAM_PAGES * 4096, harts: 1 };
function fakeState(change: Record<string, unknown> = {}, device: Record<string, unknown> = {}): Uint8Array {
  const state = { ticks: 1n, enabled: true, blob: new Uint8Array(4), stores: 0n, ...change };
  return encodeMessagePack({ config: CONFIG, devices: [{ name: 'fake0', version: 2, state, ...device }] });
}

function patched(record: Uint8Array, offset: number, ...bytes: number[]): Uint8Array {
  const copy = record.slice();
  copy.set(bytes, offset);
  return copy;
}

function nested(depth: number): Uint8Array {
  return Uint8Array.of(...new Array(depth).fill(0x91), 0xc0);
}

const ALL_ZERO = makeRecord({ pageCount: RAM_PAGES });
const RAW = makeRecord({ kind: RecordKind.raw, firstPage: 3 });

/** [the wrong thing, how the stream is changed, what the error says] */
const WRONG: readonly (readonly [string, (golden: readonly Piece[]) => readonly Piece[], RegExp])[] = [
  ['an HTTP request', () => [Buffer.from('GET / HTTP/1.1\r\n\r\n')], /length \d+, expected 1..65536/],
  ['control length 0', (g) => [new Uint8Array(4), ...g], /length 0/],
  ['control length 65537', () => [Uint8Array.of(1, 0, 1, 0)], /length 65537/],
  ['control length 2^32-1', () => [Uint8Array.of(255, 255, 255, 255)], /length 4294967295/],
  ['protobuf that is cut short', () => [Uint8Array.of(2, 0, 0, 0, 0x0a, 0x7f)], /not well-formed/],
  ['a group wire type without end', () => [Uint8Array.of(2, 0, 0, 0, 0x0b, 0x0b)], /not well-formed|unknown or empty/],
  ['an unknown message', () => [Uint8Array.of(3, 0, 0, 0, 0xfa, 0x01, 0)], /unknown or empty/],
  ['a record before Hello', (g) => [ALL_ZERO, ...g], /Cannot accept record .* phase start/],
  ['Manifest before Hello', (g) => without(g, 'hello'), /Cannot accept manifest .* phase start/],
  ['Hello twice', (g) => [g[0]!, ...g], /Cannot accept hello/],
  ['a session id of 15 bytes', (g) => change(g, 'hello', { sessionId: new Uint8Array(15) }), /sessionId: 15 bytes/],
  ['only versions from the future', (g) => change(g, 'hello', { versionMin: 2, versionMax: 9 }), /versions 2 to 9/],
  ['33 features', (g) => change(g, 'hello', { features: new Array(33).fill('f') }), /33 items, limit is 32/],
  ['a message that only a destination sends', (g) => before(g, 'begin', { kind: 'ready' }), /source does not send it/],
  [
    'two RAM blocks',
    (g) =>
      change(g, 'manifest', {
        ram: [
          { name: 'a', pages: 1 },
          { name: 'b', pages: 1 },
        ],
      }),
    /RAM blocks/,
  ],
  [
    'a renamed RAM block',
    (g) => change(g, 'manifest', { ram: [{ name: 'virt.flash0', pages: RAM_PAGES }] }),
    /RAM blocks/,
  ],
  [
    'RAM of 2^32-1 pages',
    (g) => change(g, 'manifest', { ram: [{ name: 'riscv_virt_board.ram', pages: 2 ** 32 - 1 }] }),
    /RAM size/,
  ],
  [
    'a device twice',
    (g) => change(g, 'manifest', { devices: new Array(2).fill({ name: 'fake0', version: 2 }) }),
    /twice/,
  ],
  [
    '257 devices',
    (g) => change(g, 'manifest', { devices: new Array(257).fill({ name: 'd', version: 1 }) }),
    /257 items/,
  ],
  [
    'a device name with a control character',
    (g) => change(g, 'manifest', { devices: [{ name: 'a\nb', version: 1 }] }),
    /printable/,
  ],
  ['no devices', (g) => change(g, 'manifest', { devices: [] }), /the source has none/],
  [
    'a config of another machine',
    (g) => change(g, 'manifest', { config: encodeMessagePack({ ...CONFIG, harts: 8 }) }),
    /config\.harts/,
  ],
  ['a config that is no MessagePack', (g) => change(g, 'manifest', { config: Uint8Array.of(0xc1) }), /config/],
  [
    'a config with a record extension',
    (g) => change(g, 'manifest', { config: Uint8Array.of(0xd4, 0x72, 0x40) }),
    /config/,
  ],
  ['a config 4096 lists deep', (g) => change(g, 'manifest', { config: nested(4096) }), /deeper/],
  ['no Begin', (g) => without(g, 'begin'), /Cannot accept passBegin .* phase accepted/],
  ['pass 0', (g) => change(g, 'passBegin', { pass: 0 }), /pass: 0, expected/],
  ['pass 2 first', (g) => change(g, 'passBegin', { pass: 2 }), /pass 2 begins, expected 1/],
  ['pass 10001', (g) => change(g, 'passBegin', { pass: 10_001 }), /pass: 10001/],
  ['a record outside a pass', (g) => before(g, 'passBegin', ALL_ZERO), /Cannot accept record .* phase between/],
  ['a record of another pass', (g) => records(g, makeRecord({ pass: 2 })), /pass 2, expected 1/],
  ['a record that skips a sequence number', (g) => records(g, makeRecord({ sequence: 1 })), /sequence 1, expected 0/],
  ['a record sent twice', (g) => records(g, ALL_ZERO, ALL_ZERO), /sequence 0, expected 1/],
  [
    'a page twice in a pass',
    (g) => records(g, ALL_ZERO, makeRecord({ sequence: 1, firstPage: 15 })),
    /page 15 .* again/,
  ],
  ['a run one page past RAM', (g) => records(g, makeRecord({ pageCount: RAM_PAGES + 1 })), /pages 0\+17 of block 0/],
  ['a run that begins past RAM', (g) => records(g, makeRecord({ firstPage: RAM_PAGES })), /pages 16\+1 of block 0/],
  ['a run far past RAM', (g) => records(g, makeRecord({ firstPage: 2 ** 32 })), /pages 4294967296\+1/],
  ['a first page of 2^40', (g) => records(g, patched(RAW, 21, 1)), /limit is 2\^40/],
  ['a first page of 2^64-1', (g) => records(g, patched(RAW, 16, ...new Array(8).fill(255))), /limit is 2\^40/],
  ['another RAM block', (g) => records(g, makeRecord({ block: 1 })), /block 1 is not in the manifest/],
  ['a run of 0 pages', (g) => records(g, patched(ALL_ZERO, 24, 0)), /0 pages, limit/],
  ['a RAW run of 257 pages', (g) => records(g, patched(RAW, 24, 1, 1)), /257 pages, limit is 256/],
  [
    'a ZERO run of 2^32-1 pages',
    (g) => records(g, patched(ALL_ZERO, 24, 255, 255, 255, 255)),
    /4294967295 pages, limit/,
  ],
  ['a payload length of one page less', (g) => records(g, patched(RAW, 28, 0, 0)), /payload of 0 bytes, expected 4096/],
  ['a payload length of 2^32-1', (g) => records(g, patched(RAW, 28, 255, 255, 255, 255)), /payload of 4294967295/],
  ['a ZERO run with a payload', (g) => records(g, patched(ALL_ZERO, 28, 1)), /payload of 1 bytes, expected 0/],
  ['a wrong CRC', (g) => records(g, patched(RAW, 32, 1, 2, 3, 4)), /CRC-32/],
  ['a flipped bit in a page', (g) => records(g, patched(RAW, 1000, 0)), /CRC-32/],
  ['a compressed record that was not agreed', (g) => records(g, patched(RAW, 5, 3)), /kind 3/],
  ['a record version 2', (g) => records(g, patched(RAW, 4, 2)), /version/],
  ['a record with flags', (g) => records(g, patched(RAW, 6, 1)), /flags/],
  ['a PassEnd that counts a record more', (g) => change(g, 'passEnd', { records: 99 }), /source says 99/],
  ['a PassEnd that counts a page less', (g) => change(g, 'passEnd', { pages: 1 }), /pages came/],
  ['PassEnd without PassBegin', (g) => without(g, 'passBegin'), /phase between/],
  ['StopSource twice', (g) => before(g, 'stopSource', { kind: 'stopSource', running: true }), /phase stopped/],
  ['no StopSource', (g) => without(g, 'stopSource'), /Cannot accept deviceState/],
  [
    'device state that begins at 1',
    (g) => change(g, 'deviceState', { offset: 1, totalBytes: 500 }),
    /at 1: 0 bytes came/,
  ],
  ['device state beyond its total', (g) => change(g, 'deviceState', { totalBytes: 3 }), /beyond its total of 3/],
  ['device state of 64 MiB and 1', (g) => change(g, 'deviceState', { totalBytes: (64 << 20) + 1 }), /totalBytes/],
  [
    'device state that does not come whole',
    (g) => change(g, 'deviceState', { totalBytes: 10_000 }),
    /of 10000 bytes came/,
  ],
  [
    'device state whose total changes',
    (g) => before(g, 'deviceState', { kind: 'deviceState', offset: 0, totalBytes: 9, chunk: new Uint8Array(1) }),
    /total changes/,
  ],
  ['no device state', (g) => without(g, 'deviceState'), /Cannot accept digest/],
  ['device state that is no MessagePack', (g) => withState(g, Uint8Array.of(0xc1, 1, 2)), /MessagePack/],
  ['device state 5000 lists deep', (g) => withState(g, nested(5000)), /deeper/],
  ['device state with a record extension', (g) => withState(g, Uint8Array.of(0xd4, 0x72, 0x40, 0x90)), /MessagePack/],
  ['device state without devices', (g) => withState(g, encodeMessagePack({ config: CONFIG })), /devices is missing/],
  [
    'device state with an unknown field',
    (g) => withState(g, encodeMessagePack({ config: 1, devices: [], more: 1 })),
    /unknown field/,
  ],
  [
    'device state with a device twice',
    (g) =>
      withState(g, encodeMessagePack({ config: 1, devices: new Array(2).fill({ name: 'a', version: 1, state: 1 }) })),
    /comes twice/,
  ],
  ['a device that is not there', (g) => withState(g, fakeState({}, { name: 'fake9' })), /expected fake0/],
  ['a device version from the future', (g) => withState(g, fakeState({}, { version: 3 })), /version from the future/],
  ['a negative counter', (g) => withState(g, fakeState({ ticks: -1n })), /fake0\.ticks/],
  ['a counter of 2^64', (g) => withState(g, fakeState({ ticks: 2 ** 64 })), /fake0\.ticks/],
  ['text where a flag belongs', (g) => withState(g, fakeState({ enabled: 'yes' })), /fake0\.enabled/],
  ['a list where bytes belong', (g) => withState(g, fakeState({ blob: [1, 2] })), /fake0\.blob/],
  ['a wrong RAM digest', (g) => change(g, 'digest', { ram: new Uint8Array(32) }), /RAM differs/],
  [
    'a page that was never sent',
    (g) => change(records(g, makeRecord({ pageCount: 15 })), 'passEnd', { records: 1, pages: 15 }),
    /RAM differs/,
  ],
  ['a wrong digest of the devices', (g) => change(g, 'digest', { devices: new Uint8Array(32) }), /devices differ/],
  ['a digest of 31 bytes', (g) => change(g, 'digest', { ram: new Uint8Array(31) }), /31 bytes/],
  ['Commit without Digest', (g) => without(g, 'digest'), /Cannot accept commit .* phase devices/],
  ['Commit first', () => [{ kind: 'commit' }], /Cannot accept commit .* phase start/],
  [
    'Abort before Commit',
    (g) => before(g, 'commit', { kind: 'abort', reason: 'no\x1b[31m' }),
    /source ended the migration: no\?\[31m/,
  ],
  ['a close before Commit', (g) => without(g, 'commit'), /closed the connection/],
];

/** The oracle of a refusal: nothing of the source is left, nothing runs, the machine can be used again. */
function assertUntouched(t: ExecutionContext, result: DestinationResult, what: string): void {
  if (result.machine.digest() !== CLEAN) t.fail(`${what}: the destination is changed`);
  if (result.machine.status !== 'inmigrate') t.fail(`${what}: the destination is ${result.machine.status}`);
  if (result.disks.owned) t.fail(`${what}: the destination has the disks`);
}

test('the golden session itself is accepted', async (t) => {
  const { pieces, digest } = await GOLDEN;
  const result = await playSource(encodePieces(pieces));
  t.is(result.progress.status, 'completed', result.progress.error?.message);
  t.is(result.machine.digest(), digest);
  t.is(result.machine.starts, 1);
  t.deepEqual(
    result.said.map((message) => message.kind),
    ['helloAck', 'manifestAck', 'passAck', 'ready', 'running'],
  );
});

for (const [what, wrong, expected] of WRONG) {
  test(`a destination refuses ${what}`, async (t) => {
    const { pieces } = await GOLDEN;
    const result = await playSource(encodePieces(wrong(pieces)));
    t.is(result.progress.status, 'failed');
    t.regex(result.progress.error?.message ?? '', expected);
    assertUntouched(t, result, what);
    t.is(result.machine.starts, 0);
  });
}

test('a stream cut at any byte leaves the destination untouched', async (t) => {
  const { pieces } = await GOLDEN;
  const bytes = encodePieces(pieces);
  const last = bytes.length - encodePieces([{ kind: 'commit' }]).length;
  let tried = 0;
  let inPage = 0;
  for (let cut = 0; cut <= bytes.length - 1; cut++) {
    // The 4096 bytes of the one page are alike: some of them stand for all.
    const page = bytes.length > 4096 && cut > 700 && cut < 4500;
    if (page && inPage++ % 61 !== 0) continue;
    const result = await playSource(bytes.subarray(0, cut));
    if (result.progress.status !== 'failed') t.fail(`cut at ${cut}: ${result.progress.status}`);
    assertUntouched(t, result, `cut at ${cut}`);
    tried++;
  }
  t.true(last > 0 && tried > 500, `${tried} cuts`);
});

test('every flipped bit is refused, or changes nothing that counts', async (t) => {
  const { pieces, digest } = await GOLDEN;
  const bytes = encodePieces(pieces);
  let refused = 0;
  let harmless = 0;
  let inPage = 0;
  for (let at = 0; at < bytes.length; at++) {
    if (at > 700 && at < 4500 && inPage++ % 97 !== 0) continue;
    for (const bit of [0, 3, 7]) {
      const flipped = new Uint8Array(bytes);
      flipped[at]! ^= 1 << bit;
      // A length that grew may leave the destination waiting: the source closes then, as here.
      const result = await playSource(flipped);
      if (result.progress.status === 'completed') {
        harmless++;
        if (result.machine.digest() !== digest) t.fail(`byte ${at} bit ${bit}: accepted another machine`);
      } else {
        refused++;
        assertUntouched(t, result, `byte ${at} bit ${bit}`);
      }
    }
  }
  t.true(refused > 1000, `${refused} refused`);
  t.log(`${refused} refused, ${harmless} harmless (producer, session id, unknown fields)`);
});

test('the golden session in pieces of one byte gives the same machine', async (t) => {
  const { pieces, digest } = await GOLDEN;
  const bytes = encodePieces(pieces);
  const result = await playSource(new Uint8Array(0), {
    end: false,
    script: async (peer) => {
      for (const byte of bytes) peer.write(Uint8Array.of(byte));
      peer.end();
    },
  });
  t.is(result.progress.status, 'completed', result.progress.error?.message);
  t.is(result.machine.digest(), digest);
});

test('a close right after Commit: the guest runs here, once', async (t) => {
  const { pieces, digest } = await GOLDEN;
  const result = await playSource(encodePieces(pieces), {
    end: false,
    script: async (peer) => {
      peer.end();
    },
  });
  t.is(result.progress.status, 'completed');
  t.is(result.machine.digest(), digest);
  t.is(result.machine.starts, 1);
  t.true(result.disks.owned);
});

test('Abort after Commit comes too late: the guest runs on here', async (t) => {
  const { pieces, digest } = await GOLDEN;
  const result = await playSource(encodePieces([...pieces, { kind: 'abort', reason: 'changed my mind' }]));
  t.is(result.progress.status, 'completed');
  t.is(result.machine.digest(), digest);
  t.is(result.machine.status, 'running');
});

/** A session up to the first pass, then passes made by `pass`. */
async function passes(count: number, pass: (number: number) => Piece[]): Promise<Uint8Array> {
  const { pieces } = await GOLDEN;
  const opening = pieces.slice(
    0,
    pieces.findIndex((piece) => kindOf(piece) === 'passBegin'),
  );
  return encodePieces([...opening, ...Array.from({ length: count }, (_, index) => pass(index + 1)).flat()]);
}

test('endless passes with one dirty page end at the limit', async (t) => {
  const bytes = await passes(50, (pass) => [
    { kind: 'passBegin', pass },
    makeRecord({ pass, sequence: pass - 1, kind: RecordKind.raw }),
    { kind: 'passEnd', pass, records: 1, pages: 1 },
  ]);
  const result = await playSource(bytes, { limits: { maxPasses: 20 }, end: false });
  t.regex(result.progress.error?.message ?? '', /Cannot begin pass 21: limit is 20/);
  assertUntouched(t, result, 'endless passes');
});

test('zero bombs end at the limit of stored pages', async (t) => {
  const bytes = await passes(100, (pass) => [
    { kind: 'passBegin', pass },
    makeRecord({ pass, sequence: pass - 1, pageCount: RAM_PAGES }),
    { kind: 'passEnd', pass, records: 1, pages: RAM_PAGES },
  ]);
  const result = await playSource(bytes, { limits: { maxPageWorkFactor: 10 }, end: false });
  t.regex(result.progress.error?.message ?? '', /Cannot store more pages: 176 in all, limit is 160/);
  assertUntouched(t, result, 'zero bombs');
});

test('a source that says nothing ends after the handshake time', async (t) => {
  const result = await playSource(new Uint8Array(0), { end: false, limits: { handshakeTimeoutMs: 30 } });
  t.is(result.progress.error?.code, 'ERR_WIRE_TIMEOUT');
  assertUntouched(t, result, 'silence');
});

test('a source that sends a byte now and then ends after the time of one frame', async (t) => {
  const { pieces } = await GOLDEN;
  const bytes = encodePieces(pieces);
  const started = performance.now();
  const result = await playSource(new Uint8Array(0), {
    end: false,
    limits: { handshakeTimeoutMs: 100, idleTimeoutMs: 100 },
    script: async (peer) => {
      for (let i = 0; i < 100 && peer.writable && !peer.destroyed; i++) {
        peer.write(bytes.subarray(i, i + 1));
        await new Promise((resolve) => setTimeout(resolve, 25));
        if (performance.now() - started > 1000) break;
      }
    },
  });
  t.is(result.progress.error?.code, 'ERR_WIRE_TIMEOUT');
  assertUntouched(t, result, 'slow loris');
});

test('a source that stops in the middle of a session ends after the idle time', async (t) => {
  const { pieces } = await GOLDEN;
  const bytes = encodePieces(
    pieces.slice(
      0,
      pieces.findIndex((piece) => kindOf(piece) === 'digest'),
    ),
  );
  const result = await playSource(bytes, { end: false, limits: { idleTimeoutMs: 50 } });
  t.is(result.progress.error?.code, 'ERR_WIRE_TIMEOUT');
  assertUntouched(t, result, 'stopped');
});
