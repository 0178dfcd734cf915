import { type Duplex, duplexPair } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import {
  type ControlKind,
  type ControlMessage,
  frameControl,
  type MigrationFrame,
  MigrationFrames,
} from '../../../protocols/migration/mod.ts';
import { DEFAULT_PARAMETERS, type MigrationParameters, MigrationSource } from '../../../services/migration/mod.ts';
import { FakeMachine } from '../../fixtures/fake_machine.ts';
import { FakeDisks } from '../../fixtures/migration_pair.ts';
import { attach, makeRecord } from '../../fixtures/migration_session.ts';

type Peer = { readonly stream: Duplex; send(...messages: (ControlMessage | Uint8Array)[]): void };
type Behaviour = (frame: MigrationFrame, peer: Peer) => boolean;

/** What an honest destination answers */
function honest(message: ControlMessage): ControlMessage | undefined {
  switch (message.kind) {
    case 'hello':
      return { kind: 'helloAck', version: 1, sessionId: message.sessionId, features: [] };
    case 'manifest':
      return { kind: 'manifestAck' };
    case 'passEnd':
      return { kind: 'passAck', pass: message.pass };
    case 'digest':
      return { kind: 'ready' };
    case 'commit':
      return { kind: 'running' };
    default:
      return undefined;
  }
}

/** Where the destination answers, wrongly: no deadline may come first, on any host */
const PATIENT_MS = 10_000;
/** Where it is silent: the deadline that the test waits for */
const SHORT_MS = 200;

/** Runs a source against a destination that is honest but for `behave`, which returns true where it has answered. */
async function run(behave: Behaviour, parameters: Partial<MigrationParameters> = {}, idleTimeoutMs = PATIENT_MS) {
  const machine = new FakeMachine({ ramBytes: 2 << 20, storesMiBPerSecond: 5, workingSetPages: 32 });
  machine.fillRandom(100, 300);
  const disks = new FakeDisks(true);
  const { client, close } = attach(machine, disks);
  const [near, far] = duplexPair();
  const peer: Peer = {
    stream: far,
    send: (...messages) => {
      for (const message of messages) {
        if (far.writable) far.write(message instanceof Uint8Array ? message : frameControl(message));
      }
    },
  };
  far.on('error', () => {}); // closed under us on purpose
  const frames = new MigrationFrames();
  far.on('data', (chunk: Uint8Array) => {
    frames.push(chunk);
    for (let frame = frames.next(); frame !== undefined; frame = frames.next()) {
      if (behave(frame, peer) || frame.kind === 'record') continue;
      const answer = honest(frame.message);
      if (answer !== undefined) peer.send(answer);
    }
  });
  const source = new MigrationSource({
    machine: client,
    parameters: { ...DEFAULT_PARAMETERS, 'switchover-timeout': idleTimeoutMs, ...parameters },
    connect: async () => near,
    idleTimeoutMs,
  });
  const progress = await source.run();
  const result = { status: machine.status, progress, disks, machine };
  await close();
  await machine.close();
  return result;
}

/** Answers one kind of message in its own way. */
function at(kind: ControlKind, act: (peer: Peer, message: ControlMessage) => void): Behaviour {
  return (frame, peer) => {
    if (frame.kind !== 'control' || frame.message.kind !== kind) return false;
    act(peer, frame.message);
    return true;
  };
}

function assertRunsHere(t: ExecutionContext, result: Awaited<ReturnType<typeof run>>, expected: RegExp): void {
  t.is(result.progress.status, 'failed');
  t.regex(result.progress.error?.message ?? '', expected);
  t.is(result.status, 'running');
  t.true(result.disks.owned);
  t.is(result.machine.throttle, 0);
  t.is(result.machine.guestProblem(), undefined);
}

test('an honest destination, as a check of the script', async (t) => {
  const result = await run(() => false);
  t.is(result.progress.status, 'completed', result.progress.error?.message);
  t.is(result.status, 'paused');
});

test('before the first page all of memory is to go', async (t) => {
  const { progress } = await run(at('hello', (peer) => peer.stream.destroy()));
  t.is(progress.remainingBytes, 2 << 20);
});

const ACK = { kind: 'helloAck', version: 1, sessionId: new Uint8Array(16), features: [] } as const;

const WRONG: readonly (readonly [string, Behaviour, RegExp])[] = [
  ['says nothing after Hello… and closes', at('hello', (peer) => peer.stream.destroy()), /Cannot reach/],
  [
    'answers in another protocol',
    at('hello', (peer) => peer.send(Buffer.from('HTTP/1.1 400 Bad Request\r\n'))),
    /length/,
  ],
  ['chooses a version that was not offered', at('hello', (peer) => peer.send({ ...ACK, version: 2 })), /version 2/],
  ['sends Ready at once', at('hello', (peer) => peer.send({ kind: 'ready' })), /Cannot accept ready/],
  ['sends a page record', at('hello', (peer) => peer.send(makeRecord({}))), /Cannot accept a record/],
  ['sends a Commit of its own', at('hello', (peer) => peer.send({ kind: 'commit' })), /destination does not send it/],
  ['sends HelloAck twice', at('hello', (peer) => peer.send(ACK, ACK)), /Cannot accept helloAck/],
  [
    'refuses with control characters',
    at('manifest', (peer) => peer.send({ kind: 'refuse', reasons: ['a\x1b]0;b'] })),
    /refuses: a\?\]0;b/,
  ],
  [
    'aborts in the first pass',
    at('passBegin', (peer) => peer.send({ kind: 'abort', reason: 'no' })),
    /ended the migration: no/,
  ],
  ['closes in the first pass', at('passBegin', (peer) => peer.stream.destroy()), /Cannot reach/],
  [
    'acknowledges a pass before its end',
    at('passBegin', (peer) => peer.send({ kind: 'passAck', pass: 1 })),
    /no pass waits/,
  ],
  [
    'acknowledges a pass twice',
    at('passEnd', (peer) => peer.send({ kind: 'passAck', pass: 1 }, { kind: 'passAck', pass: 1 })),
    /no pass waits/,
  ],
  [
    'acknowledges a pass that was never sent',
    at('passEnd', (peer) => peer.send({ kind: 'passAck', pass: 9 })),
    /passAck of pass 9: expected 1/,
  ],
  ['answers with the name of another session', at('hello', (peer) => peer.send(ACK)), /of another session/],
  ['never acknowledges a pass', at('passEnd', () => {}), /no passAck of the destination in 200 ms/],
  ['sends Ready before the devices', at('stopSource', (peer) => peer.send({ kind: 'ready' })), /Cannot accept ready/],
  ['sends Running before Commit', at('digest', (peer) => peer.send({ kind: 'running' })), /Cannot accept running/],
  ['never gets ready', at('digest', () => {}), /not ready in 200 ms|no ready/],
  ['closes when the guest stands', at('stopSource', (peer) => peer.stream.destroy()), /Cannot reach/],
  [
    'aborts instead of Ready',
    at('digest', (peer) => peer.send({ kind: 'abort', reason: 'RAM differs' })),
    /RAM differs/,
  ],
  [
    'aborts instead of Running',
    at('commit', (peer) => peer.send({ kind: 'abort', reason: 'disk is locked' })),
    /disk is locked/,
  ],
];

for (const [what, behaviour, expected] of WRONG) {
  test(`the guest runs on at the source when the destination ${what}`, async (t) => {
    const silent = expected.source.includes(`${SHORT_MS} ms`);
    assertRunsHere(t, await run(behaviour, {}, silent ? SHORT_MS : PATIENT_MS), expected);
  });
}

for (const [where, kind] of [
  ['the first pass', 'passBegin'],
  ['the switchover', 'stopSource'],
] as const) {
  test(`the guest runs on at the source when the destination stops reading at ${where}`, async (t) => {
    const behaviour = at(kind, (peer) => peer.stream.pause());
    const result = await run(behaviour, {}, 150);
    assertRunsHere(t, result, /has not read|no passAck|not ready/);
  });
}

test('a destination that floods with messages is cut off, its messages do not pile up', async (t) => {
  const result = await run(
    at('passEnd', (peer) => {
      for (let i = 0; i < 10_000; i++) peer.send({ kind: 'passAck', pass: 1 });
    }),
  );
  assertRunsHere(t, result, /no pass waits/);
});

test('a destination that closes after Commit: the source stands and says that the outcome is unknown', async (t) => {
  const result = await run(at('commit', (peer) => peer.stream.destroy()));
  t.is(result.progress.error?.code, 'ERR_MIGRATION_UNKNOWN_OUTCOME');
  t.is(result.status, 'paused');
  t.false(result.disks.owned);
});

test('a destination that is silent after Commit: the source stands and says that the outcome is unknown', async (t) => {
  const quiet = at('commit', (peer) => {
    setTimeout(() => peer.stream.destroy(), 100);
  });
  const result = await run(quiet);
  t.is(result.progress.error?.code, 'ERR_MIGRATION_UNKNOWN_OUTCOME');
  t.is(result.status, 'paused');
});
