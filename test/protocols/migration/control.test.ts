import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  type ControlMessage,
  decodeControl,
  decodeDescription,
  decodeFault,
  decodePassTotals,
  encodeControl,
  encodeDescription,
  encodeFault,
  encodePassTotals,
  printable,
  type SessionMessage,
  SessionState,
  StateCollector,
} from '../../../protocols/migration/mod.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';

const MESSAGES: ControlMessage[] = [
  { kind: 'hello', versionMin: 1, versionMax: 3, sessionId: new Uint8Array(16).fill(9), features: ['zstd', 'x'] },
  { kind: 'helloAck', version: 1, sessionId: new Uint8Array(16).fill(1), features: [] },
  {
    kind: 'manifest',
    producer: 'caisson 0.1',
    ram: [{ name: 'ram', pages: 0xffff_ffff }],
    devices: [
      { name: 'uart0', version: 0 },
      { name: 'plic', version: 4 },
    ],
    config: Uint8Array.of(0x80),
  },
  { kind: 'manifestAck' },
  { kind: 'refuse', reasons: ['RAM size', 'devices'] },
  { kind: 'begin' },
  { kind: 'passBegin', pass: 10_000 },
  { kind: 'passEnd', pass: 3, records: 0, pages: 0xffff_ffff },
  { kind: 'passAck', pass: 3 },
  { kind: 'stopSource', running: true },
  { kind: 'stopSource', running: false },
  { kind: 'deviceState', offset: 0, totalBytes: 4, chunk: Uint8Array.of(1, 2, 3, 4) },
  { kind: 'digest', ram: new Uint8Array(32).fill(1), devices: new Uint8Array(32).fill(2), recomputed: true },
  { kind: 'ready' },
  { kind: 'commit' },
  { kind: 'running' },
  { kind: 'abort', reason: 'cancelled' },
];

for (const message of MESSAGES) {
  test(`control message ${message.kind} ${JSON.stringify(message).length} comes back as it was sent`, (t) => {
    const bytes = encodeControl(message);
    t.deepEqual(plain(decodeControl(bytes)), plain(message));
    survivesEveryByteChange(t, bytes, decodeControl);
    // A prefix may be a valid message with fewer fields (protobuf has no end mark); it must never be another error.
    for (let length = 0; length < bytes.length; length++) {
      try {
        decodeControl(bytes.subarray(0, length));
      } catch (error) {
        t.true(error instanceof WireError, `cut at ${length}: ${String(error)}`);
      }
    }
  });
}

/** Views of other classes compare by their bytes. */
function plain(message: ControlMessage): unknown {
  return JSON.parse(JSON.stringify(message, (_, value) => (value instanceof Uint8Array ? [...value] : value)));
}

test('decodeControl() takes the last of two bodies, and nothing of the first', (t) => {
  const bytes = new Uint8Array([
    ...encodeControl({ kind: 'commit' }),
    ...encodeControl({ kind: 'abort', reason: 'x' }),
  ]);
  t.deepEqual(decodeControl(bytes), { kind: 'abort', reason: 'x' });
});

test('decodeControl() does not treat names of Object.prototype as messages or fields', (t) => {
  t.throws(() => decodeControl(new Uint8Array(0)), { instanceOf: WireError });
  t.throws(() => decodeControl(encodeControl({ kind: 'refuse', reasons: new Array(17).fill('__proto__') })), {
    instanceOf: WireError,
    message: /17 items, limit is 16/,
  });
  t.deepEqual(decodeControl(encodeControl({ kind: 'abort', reason: '__proto__' })), {
    kind: 'abort',
    reason: '__proto__',
  });
});

test('decodeControl() refuses 64 KiB of groups without a stack overflow', (t) => {
  t.throws(() => decodeControl(new Uint8Array(65_536).fill(0x0b)), { instanceOf: WireError });
  t.throws(() => decodeControl(new Uint8Array(65_536).fill(0xff)), { instanceOf: WireError });
  t.throws(() => decodeControl(new Uint8Array(65_537)), { instanceOf: WireError });
});

test('printable() leaves no control characters for a terminal', (t) => {
  t.is(printable('a\x1b[31m\n\u202eb'), 'a?[31m??b');
});

test('machine description and answers: round trip, truncation, changes', (t) => {
  const description = { ramPages: 5, running: true, config: Uint8Array.of(1, 2), devices: [{ name: 'a', version: 7 }] };
  const bytes = encodeDescription(description);
  t.deepEqual(plain(decodeDescription(bytes) as never), plain(description as never));
  refusesEveryTruncation(t, bytes, decodeDescription);
  survivesEveryByteChange(t, bytes, decodeDescription);
  const totals = encodePassTotals({ records: 1, pages: 2, zeroPages: 3 });
  t.deepEqual(decodePassTotals(totals), { records: 1, pages: 2, zeroPages: 3 });
  refusesEveryTruncation(t, totals, decodePassTotals);
  const fault = encodeFault(4, 'ERR_X', 'Cannot — do');
  t.deepEqual(decodeFault(fault), { request: 4, code: 'ERR_X', text: 'Cannot — do' });
  survivesEveryByteChange(t, fault, decodeFault);
});

test('StateCollector refuses holes, overlaps and more than its limit', (t) => {
  const collector = new StateCollector();
  collector.add(0, Uint8Array.of(1, 2));
  t.throws(() => collector.add(1, Uint8Array.of(3)), { instanceOf: WireError });
  t.throws(() => collector.add(3, Uint8Array.of(3)), { instanceOf: WireError });
  t.throws(() => collector.add(2, new Uint8Array(0)), { instanceOf: WireError });
  t.throws(() => collector.add(2, new Uint8Array(64 << 20)), { instanceOf: WireError });
  collector.add(2, Uint8Array.of(3));
  t.deepEqual([...collector.take()], [1, 2, 3]);
});

const ORDER: [end: 'source' | 'destination', message: SessionMessage][] = [
  ['source', 'hello'],
  ['destination', 'helloAck'],
  ['source', 'manifest'],
  ['destination', 'manifestAck'],
  ['source', 'begin'],
  ['source', 'passBegin'],
  ['source', 'record'],
  ['source', 'passEnd'],
  ['destination', 'passAck'],
  ['source', 'stopSource'],
  ['source', 'passBegin'],
  ['source', 'record'],
  ['source', 'passEnd'],
  ['source', 'deviceState'],
  ['source', 'digest'],
  ['destination', 'passAck'],
  ['destination', 'ready'],
  ['source', 'commit'],
  ['destination', 'running'],
];
const ALL: SessionMessage[] = [...new Set([...ORDER.map(([, message]) => message), 'refuse', 'abort'] as const)];

/** Both ends after the first `count` messages */
function sessionAfter(count: number): { source: SessionState; destination: SessionState } {
  const ends = { source: new SessionState('source'), destination: new SessionState('destination') };
  for (const [end, message] of ORDER.slice(0, count)) {
    ends[end].sent(message);
    ends[end === 'source' ? 'destination' : 'source'].received(message);
  }
  return ends;
}

test('SessionState accepts the session that the specification draws', (t) => {
  const { source, destination } = sessionAfter(ORDER.length);
  t.is(source.phase, 'done');
  t.is(destination.phase, 'done');
});

test('SessionState: in no phase does a destination accept Commit, but after Ready', (t) => {
  for (let count = 0; count <= ORDER.length; count++) {
    const { destination } = sessionAfter(count);
    const ready = ORDER[count]?.[1] === 'commit';
    if (ready) t.notThrows(() => destination.received('commit'));
    else t.throws(() => destination.received('commit'), { instanceOf: WireError }, `after ${count} messages`);
  }
});

test('SessionState: what is out of place in a phase is refused by both ends alike, and changes nothing', (t) => {
  for (let count = 0; count <= ORDER.length; count++) {
    for (const message of ALL) {
      const { source, destination } = sessionAfter(count);
      const phase = destination.phase;
      let accepted = true;
      try {
        destination.received(message);
      } catch (error) {
        accepted = false;
        t.true(error instanceof WireError);
        t.is(destination.phase, phase);
      }
      if (accepted) t.notThrows(() => source.sent(message), `${message} after ${count}`);
      else t.throws(() => source.sent(message), undefined, `${message} after ${count}`);
    }
  }
});

test('SessionState: a source cannot take the guest back after Commit, a destination can give it back', (t) => {
  const { source, destination } = sessionAfter(ORDER.findIndex(([, message]) => message === 'commit') + 1);
  t.throws(() => source.sent('abort'));
  t.throws(() => destination.received('abort'), { instanceOf: WireError });
  destination.sent('abort');
  source.received('abort');
  t.is(source.phase, 'aborted');
});

test('SessionState: Ready before the last pass is acknowledged is refused', (t) => {
  const { source } = sessionAfter(ORDER.findIndex(([, message]) => message === 'digest') + 1);
  t.throws(() => source.received('ready'), { message: /not acknowledged/ });
});
