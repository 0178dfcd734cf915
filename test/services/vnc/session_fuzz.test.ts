import test from 'ava';
import fc from 'fast-check';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { hex } from '../../fixtures/rfb_client.ts';
import { pause, ViewerRig } from './rig.ts';

// What noVNC and TigerVNC send in their first second, in order; mutated below.
const SESSION: readonly Buffer[] = [
  Buffer.from('RFB 003.008\n'),
  hex('01'),
  hex('01'),
  hex('00 000000 20 18 00 01 00ff 00ff 00ff 00 08 10 000000'),
  hex('02 00 0009 00000010 00000000 ffffff20 fffffefe fffffec8 fffffecc fffffec7 fffffec4 fffffefb'),
  hex('03 00 0000 0000 0140 00c8'),
  hex('96 01 0000 0000 0140 00c8'),
  hex('f8 000000 80000001 04 01020304'),
  hex('ff 00 0001 00000061 0000001e'),
  hex('ff 00 0000 00000061 0000001e'),
  hex('05 81 0010 0020 01'),
  hex('05 00 0010 0020'),
  hex('06 000000 00000004 61626364'),
  hex('fb 00 0200 0180 01 00 00000000 0000 0000 0200 0180 00000000'),
  hex('03 01 0000 0000 ffff ffff'),
];

type Mutation =
  | { kind: 'flip'; message: number; byte: number; value: number }
  | { kind: 'drop'; message: number }
  | { kind: 'repeat'; message: number; times: number }
  | { kind: 'cut'; message: number; length: number }
  | { kind: 'insert'; message: number; bytes: Uint8Array };

const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.record({ kind: fc.constant('flip' as const), message: fc.nat(14), byte: fc.nat(40), value: fc.nat(255) }),
  fc.record({ kind: fc.constant('drop' as const), message: fc.nat(14) }),
  fc.record({ kind: fc.constant('repeat' as const), message: fc.nat(14), times: fc.integer({ min: 2, max: 400 }) }),
  fc.record({ kind: fc.constant('cut' as const), message: fc.nat(14), length: fc.nat(20) }),
  fc.record({ kind: fc.constant('insert' as const), message: fc.nat(14), bytes: fc.uint8Array({ maxLength: 64 }) }),
);

function mutate(mutations: readonly Mutation[]): Buffer {
  const messages = SESSION.map((message) => [Buffer.from(message)]);
  for (const m of mutations) {
    const at = messages[m.message]!;
    if (m.kind === 'drop') at.length = 0;
    else if (m.kind === 'insert') at.push(Buffer.from(m.bytes));
    else if (at[0] === undefined) continue;
    else if (m.kind === 'flip') at[0][m.byte % at[0].length] = m.value;
    else if (m.kind === 'repeat') for (let i = 1; i < m.times; i++) at.push(at[0]);
    else at[0] = at[0].subarray(0, m.length);
  }
  return Buffer.concat(messages.flat());
}

test.serial(
  'S7 D5 mutated sessions end with a WireError or not at all, and never disturb another viewer',
  async (t) => {
    t.timeout(60_000);
    const rig = new ViewerRig({
      share: 'ignore',
      handshakeTimeoutMs: 5000,
      maxViewers: 400,
      maxHandshakes: 400,
      maxPerAddress: 400,
    });
    const watcher = await rig.connect({ address: 'watcher' }).open();
    watcher.setPixelFormat();
    watcher.setEncodings(16);
    watcher.request(false);
    await watcher.update();
    const streams: ReturnType<ViewerRig['connect']>['stream'][] = [];
    await fc.assert(
      fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 4 }), fc.nat(1000), async (mutations, cut) => {
        const bytes = mutate(mutations);
        const client = rig.connect();
        streams.push(client.stream);
        const at = cut % (bytes.length + 1);
        client.stream.write(bytes.subarray(0, at));
        client.stream.write(bytes.subarray(at));
        await pause(2);
        if (streams.length > 40) streams.shift()!.destroy();
      }),
      { numRuns: 300, endOnFailure: true },
    );
    await pause(100);
    for (const stream of streams) stream.destroy();
    const foreign = rig.errors.filter(
      (error) => !(error instanceof WireError) && !/premature|aborted/i.test(error.message),
    );
    t.deepEqual(foreign, []);
    t.true(rig.errors.length > 20, 'mutations were noticed');
    watcher.request(true);
    rig.fill(0, 0, 320, 200, (x, y) => x * 7 + y);
    await watcher.update();
    t.true(rig.matches(watcher));
    rig.console.close();
  },
);
