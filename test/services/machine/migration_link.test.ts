import { duplexPair } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import { decodeFault, encodeBoolean, encodeNumber, LinkFrame, RecordKind } from '../../../protocols/migration/mod.ts';
import { serveMigration } from '../../../services/machine/migration_link.ts';
import { MachineClient } from '../../../services/migration/mod.ts';
import { encodeMachineState } from '../../../services/shared/device_state.ts';
import { Channel } from '../../../services/shared/mod.ts';
import { FakeMachine } from '../../fixtures/fake_machine.ts';
import { FakeDisks } from '../../fixtures/migration_pair.ts';
import { makeRecord } from '../../fixtures/migration_session.ts';

const NOTHING = new Uint8Array(0);

/** A migration role that has been taken over: it sends frames as it likes. */
function hijacked(t: ExecutionContext, machine: FakeMachine, disks = new FakeDisks(machine.status === 'running')) {
  const [machineLink, roleLink] = duplexPair();
  const server = serveMigration(machineLink, machine, disks);
  const channel = new Channel(roleLink, { name: 'hijacked' });
  const answers: string[] = [];
  let wake: (() => void) | undefined;
  channel.onFrame((type, payload) => {
    if (type === LinkFrame.fault) answers.push(decodeFault(payload).text);
    else if (type === LinkFrame.done) answers.push('done');
    wake?.();
  });
  t.teardown(async () => {
    channel.close();
    await server.closed;
    await machine.close();
  });
  return {
    disks,
    server,
    channel,
    answers,
    async ask(type: number, payload: Uint8Array = NOTHING): Promise<string> {
      const count = answers.length;
      channel.send(type, payload);
      while (answers.length === count && !channel.closed)
        await new Promise<void>((resolve) => {
          wake = resolve;
          channel.onClose(() => resolve());
        });
      return answers[count] ?? 'closed';
    },
  };
}

test('a role that asks out of order is refused, and the guest runs on', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  const before = machine.digest();
  for (const type of [
    LinkFrame.sync,
    LinkFrame.pause,
    LinkFrame.save,
    LinkFrame.release,
    LinkFrame.handover,
    LinkFrame.passMark,
    LinkFrame.incoming,
    99,
  ]) {
    t.regex(await role.ask(type), /^Cannot/, `request ${type}`);
  }
  t.regex(await role.ask(LinkFrame.commit, encodeBoolean(true)), /^Cannot/);
  t.regex(await role.ask(LinkFrame.prepare, encodeNumber(0)), /^Cannot/);
  t.regex(await role.ask(LinkFrame.digest, encodeBoolean(true)), /^Cannot/);
  t.regex(await role.ask(LinkFrame.throttle, Uint8Array.of(100)), /expected 0\.\.99/);
  t.regex(await role.ask(LinkFrame.pass, NOTHING), /^Cannot/);
  t.is(machine.status, 'running');
  t.is(machine.digest(), before);
  t.deepEqual(role.disks.calls, []);
});

test('a role cannot save or hand over a guest that it has not paused', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  t.is(await role.ask(LinkFrame.track), 'done');
  t.regex(await role.ask(LinkFrame.save), /not paused/);
  t.regex(await role.ask(LinkFrame.release), /not paused/);
  t.is(await role.ask(LinkFrame.pause), 'done');
  t.regex(await role.ask(LinkFrame.handover), /disks are not released/);
  t.is(await role.ask(LinkFrame.untrack), 'done');
  t.is(machine.status, 'running');
});

test('nobody may run a guest that is on its way or runs elsewhere', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  const may: (string | undefined)[] = [];
  for (const type of [LinkFrame.track, LinkFrame.pause, LinkFrame.untrack]) {
    t.is(await role.ask(type), 'done');
    may.push(role.server.blocksRun());
  }
  t.deepEqual(may, [undefined, 'the guest is being migrated away', undefined]);
  for (const type of [LinkFrame.track, LinkFrame.pause, LinkFrame.release]) t.is(await role.ask(type), 'done');
  t.regex(role.server.blocksRun() ?? '', /may run elsewhere/);
  t.is(await role.ask(LinkFrame.handover), 'done');
  t.regex(role.server.blocksRun() ?? '', /runs elsewhere/);
  role.channel.close();
  await role.server.closed;
  t.regex(role.server.blocksRun() ?? '', /runs elsewhere/);
});

test('nobody may run a machine while a guest comes in', async (t) => {
  const role = hijacked(t, new FakeMachine({ status: 'inmigrate' }));
  t.is(await role.ask(LinkFrame.incoming), 'done');
  t.regex(role.server.blocksRun() ?? '', /migrated in/);
  t.is(await role.ask(LinkFrame.abort), 'done');
  t.is(role.server.blocksRun(), undefined);
});

test('a role cannot store pages into a machine that runs', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  const before = machine.digest();
  t.regex(await role.ask(LinkFrame.incoming), /it is in state running/);
  role.channel.send(LinkFrame.record, makeRecord({ kind: RecordKind.raw }));
  await role.server.closed;
  t.is(machine.digest(), before);
});

const WRONG_RECORDS: readonly (readonly [string, () => Uint8Array])[] = [
  ['past RAM', () => makeRecord({ kind: RecordKind.raw, firstPage: 512 })],
  ['one page past RAM', () => makeRecord({ kind: RecordKind.raw, firstPage: 511, pageCount: 2 })],
  ['far past RAM', () => makeRecord({ firstPage: 2 ** 40 - 1 })],
  ['of another block', () => makeRecord({ block: 1 })],
  ['cut short', () => makeRecord({ kind: RecordKind.raw }).subarray(0, 4000)],
  ['with bytes after it', () => Buffer.concat([makeRecord({}), Uint8Array.of(0)])],
  ['with a wrong CRC', () => makeRecord({ kind: RecordKind.raw }).fill(9, 100, 101)],
];
for (const [what, record] of WRONG_RECORDS) {
  test(`a record ${what} closes the link and undoes what came`, async (t) => {
    const machine = new FakeMachine({ status: 'inmigrate' });
    const clean = machine.digest();
    const role = hijacked(t, machine);
    t.is(await role.ask(LinkFrame.incoming), 'done');
    role.channel.send(LinkFrame.record, makeRecord({ kind: RecordKind.raw, firstPage: 5 }));
    role.channel.send(LinkFrame.record, record());
    await role.server.closed;
    t.is(machine.digest(), clean);
    t.is(machine.starts, 0);
  });
}

test('a role cannot start a machine without a valid device state', async (t) => {
  const machine = new FakeMachine({ status: 'inmigrate' });
  const role = hijacked(t, machine);
  const clean = machine.digest();
  t.is(await role.ask(LinkFrame.incoming), 'done');
  t.regex(await role.ask(LinkFrame.commit, encodeBoolean(true)), /not prepared/);
  t.regex(await role.ask(LinkFrame.prepare, encodeNumber(5)), /0 of 5 bytes/);
  role.channel.send(LinkFrame.state, encodeNumber(0), Uint8Array.of(0xc1));
  t.regex(await role.ask(LinkFrame.prepare, encodeNumber(1)), /MessagePack/);
  const foreign = encodeMachineState({ config: { machine: 'fake' }, devices: [{ name: 'x', version: 1, state: 1 }] });
  role.channel.send(LinkFrame.state, encodeNumber(0), foreign);
  t.regex(await role.ask(LinkFrame.prepare, encodeNumber(foreign.length)), /expected fake0/);
  t.regex(await role.ask(LinkFrame.commit, encodeBoolean(true)), /not prepared/);
  t.is(machine.starts, 0);
  t.is(machine.digest(), clean);
  t.deepEqual(role.disks.calls, []);
});

test('a role that floods with requests is cut off', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  for (let i = 0; i < 1000; i++) role.channel.send(LinkFrame.describe);
  await role.server.closed;
  t.true(role.answers.length < 10);
  t.is(machine.status, 'running');
});

test('a frame above its limit is cut off before it is buffered', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  role.channel.stream.write(Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0, LinkFrame.record));
  await role.server.closed;
  t.is(machine.status, 'running');
});

test('a migration role that dies while the guest stands: the guest runs on', async (t) => {
  const machine = new FakeMachine({ storesMiBPerSecond: 5 });
  const role = hijacked(t, machine);
  t.is(await role.ask(LinkFrame.track), 'done');
  t.is(await role.ask(LinkFrame.throttle, Uint8Array.of(80)), 'done');
  t.is(await role.ask(LinkFrame.pause), 'done');
  t.is(machine.status, 'paused');
  role.channel.close();
  await role.server.closed;
  t.is(machine.status, 'running');
  t.is(machine.throttle, 0);
});

test('a migration role that dies after the disks were released: the guest stays paused and says so', async (t) => {
  const machine = new FakeMachine();
  const role = hijacked(t, machine);
  for (const type of [LinkFrame.track, LinkFrame.pause, LinkFrame.release]) t.is(await role.ask(type), 'done');
  role.channel.close();
  await role.server.closed;
  t.is(machine.status, 'paused');
  t.regex(role.disks.logged.join(), /stays paused here/);
  t.deepEqual(role.disks.calls, ['flush', 'release']);
});

test('a store without a dirty mark is found when RAM is verified', async (t) => {
  const machine = new FakeMachine();
  machine.fillRandom(3, 5);
  const [machineLink, roleLink] = duplexPair();
  const server = serveMigration(machineLink, machine, new FakeDisks(true));
  const client = new MachineClient(roleLink);
  await client.track();
  await client.sync();
  await client.pass(1, () => {});
  machine.bytes[3 * 4096]! ^= 1; // no mark
  await client.pause();
  t.is(await client.sync(), 0);
  await t.notThrowsAsync(client.digest(false));
  await t.throwsAsync(client.digest(true), { message: /page 3 is not as it was moved/ });
  client.close();
  await server.closed;
});

test('a machine that sends what was not asked for loses its link', async (t) => {
  const [machineLink, roleLink] = duplexPair();
  const machine = new Channel(machineLink, { name: 'machine' });
  machine.onFrame(() => machine.send(LinkFrame.record, makeRecord({})));
  const client = new MachineClient(roleLink);
  await t.throwsAsync(client.sync(), { code: 'ERR_MIGRATION_MACHINE' });
});

test('a machine whose answers are of the wrong size is refused', async (t) => {
  const [machineLink, roleLink] = duplexPair();
  const machine = new Channel(machineLink, { name: 'machine' });
  machine.onFrame((type) => machine.send(LinkFrame.done, Uint8Array.of(0, type), Uint8Array.of(1, 2, 3)));
  const client = new MachineClient(roleLink);
  await t.throwsAsync(client.describe(), { code: 'ERR_WIRE_TRUNCATED' });
  await t.throwsAsync(client.sync(), { code: 'ERR_WIRE_TRUNCATED' });
  await t.throwsAsync(client.pause(), { code: 'ERR_WIRE_TRAILING' });
  await t.throwsAsync(client.digest(false), { code: 'ERR_WIRE_VALUE' });
  client.close();
});
