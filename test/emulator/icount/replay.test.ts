import test, { type ExecutionContext } from 'ava';
import type { BlockBackend } from '../../../emulator/devices/backends.ts';
import { ReplayError } from '../../../emulator/icount/replay_error.ts';
import type { ReplayFile } from '../../../emulator/icount/replay_log.ts';
import type { MachineOptions } from '../../../emulator/machine/machine_api.ts';
import { MachineRig } from '../../fixtures/machine_rig.ts';

const SHIFT = 3;
const DISK_BYTES = 1 << 20;

/** A disk that takes its time, and another one each time. */
function slowDisk(contents: Uint8Array): BlockBackend {
  const pause = () => new Promise<void>((resolve) => setTimeout(resolve, Math.random() * 3));
  return {
    sizeBytes: contents.length,
    readOnly: false,
    blockBytes: 512,
    read: async (offset, into) => {
      await pause();
      into.set(contents.subarray(offset, offset + into.length));
    },
    write: async (offset, data) => {
      await pause();
      contents.set(data, offset);
    },
    flush: pause,
  };
}

/** A disk that must not be touched. */
const noDisk: BlockBackend = {
  sizeBytes: DISK_BYTES,
  readOnly: false,
  blockBytes: 512,
  read: () => Promise.reject(new Error('read in a replay')),
  write: () => Promise.reject(new Error('written in a replay')),
  flush: () => Promise.reject(new Error('flushed in a replay')),
};

function makeRig(options: Partial<MachineOptions> = {}, sleep = false): MachineRig {
  return new MachineRig({ icount: { shift: SHIFT, sleep }, ...options });
}

/** Where a machine is after so many instructions. */
async function stateAt(rig: MachineRig, instructions: number): Promise<string> {
  await rig.machine.runTo(instructions);
  return `${rig.machine.instructions} ${rig.machine.digest().toString(16)}`;
}

test.serial(
  'a taker of output without room stops all harts between two runs, and changes nothing of them',
  async (t) => {
    await using one = makeRig();
    await using two = makeRig();
    const expected = await stateAt(one, 3_000_000);
    await two.machine.runTo(400_000);
    two.machine.serial.holdOutput(true);
    const reached = stateAt(two, 3_000_000);
    await new Promise((resolve) => setTimeout(resolve, 100));
    // It may be paused and go on; that lets it do no more
    t.true(two.machine.instructions < 410_000);
    await two.machine.pause();
    t.true(two.machine.instructions < 410_000);
    two.machine.resume();
    await new Promise((resolve) => setTimeout(resolve, 50));
    t.true(two.machine.instructions < 410_000);
    two.machine.serial.holdOutput(false);
    t.is(await reached, expected);
    t.is(one.output, two.output);
  },
);

for (const harts of [1, 3]) {
  test.serial(
    `without input, two runs of ${harts} hart(s) are the same after any number of instructions`,
    async (t) => {
      await using one = makeRig({ harts });
      await using two = makeRig({ harts });
      // The second is stopped and looked at more often: that must change nothing
      await two.machine.runTo(700_000);
      await two.machine.runTo(1_900_000);
      for (const count of [2_000_000, 6_000_000]) t.is(await stateAt(one, count), await stateAt(two, count));
      t.true(one.machine.instructions >= 6_000_000);
      t.is(one.output, two.output);
      t.deepEqual([...one.problems, ...two.problems], []);
    },
  );
}

test.serial('another shift gives another run: guest time is made of instructions', async (t) => {
  await using one = makeRig({ icount: { shift: 0, sleep: false } });
  await using two = makeRig({ icount: { shift: 8, sleep: false } });
  t.not(await stateAt(one, 4_000_000), await stateAt(two, 4_000_000));
});

test.serial('what is saved between two runs goes on in another machine as in the first', async (t) => {
  for (const harts of [1, 2]) {
    await using first = makeRig({ harts });
    await first.machine.runTo(2_500_000);
    const state = first.machine.saveState();
    const ram = first.machine.ram(0, first.machine.ramBytes).slice();
    await using second = makeRig({ harts });
    second.machine.awaitMigration();
    const commit = second.machine.prepareState(structuredClone(state));
    second.machine.loadRam(0, ram);
    commit();
    t.is(second.machine.digest(), first.machine.digest(), 'as loaded');
    for (const count of [2_600_000, 5_000_000, 9_000_000])
      t.is(await stateAt(second, count), await stateAt(first, count));
    await using straight = makeRig({ harts });
    t.is(await stateAt(straight, 9_000_000), await stateAt(first, 9_000_000), 'and as a run that was never saved');
  }
});

interface Recording {
  readonly chunks: Uint8Array[];
  readonly output: string;
  readonly digest: bigint;
  readonly instructions: number;
}

/** A session at the firmware's prompt, typed by somebody who is never equally fast. */
async function record(t: ExecutionContext, options: Partial<MachineOptions>, sleep: boolean): Promise<Recording> {
  const chunks: Uint8Array[] = [];
  const contents = new Uint8Array(DISK_BYTES);
  for (let at = 0; at < contents.length; at++) contents[at] = Math.random() * 256;
  const rig = new MachineRig({
    ...options,
    disks: [{ id: 'd0', bus: 'virtio-pci', backend: slowDisk(contents) }],
    icount: { shift: SHIFT, sleep, file: { mode: 'record', write: (bytes) => chunks.push(bytes.slice()) } },
  });
  let output = '';
  rig.machine.serial.output.subscribe((bytes) => {
    output += Buffer.from(bytes).toString('latin1');
  });
  rig.machine.start();
  await rig.expect(/ready/);
  await rig.ask('info', /info: /);
  await rig.ask('disk read 7', /disk[^\n]*\n/);
  await rig.ask('disk write 9', /disk[^\n]*\n/);
  await rig.ask('count 300', /generation=/);
  await rig.ask('disk read 9', /disk[^\n]*\n/);
  await rig.ask('checksum', /checksum: OK/);
  await rig.machine.pause();
  const digest = rig.machine.digest();
  const { instructions } = rig.machine;
  await rig.machine.close();
  t.deepEqual(rig.problems, []);
  return { chunks, output, digest, instructions };
}

function replayOf(chunks: readonly Uint8Array[]): ReplayFile {
  const left = [...chunks];
  return { mode: 'replay', read: () => left.shift() };
}

function replayRig(chunks: readonly Uint8Array[], options: Partial<MachineOptions> = {}): MachineRig {
  return new MachineRig({
    disks: [{ id: 'd0', bus: 'virtio-pci', backend: noDisk }],
    ...options,
    icount: { shift: 0, sleep: true, file: replayOf(chunks) },
  });
}

for (const [name, options, sleep] of [
  ['one hart', {}, false],
  ['one hart that sleeps', {}, true],
  ['two harts', { harts: 2 }, true],
] as const) {
  test.serial(
    `a recorded session of ${name} is replayed to the same state, without its disk and its terminal`,
    async (t) => {
      const recording = await record(t, options, sleep);
      await using rig = replayRig(recording.chunks, options);
      let output = '';
      rig.machine.serial.output.subscribe((bytes) => {
        output += Buffer.from(bytes).toString('latin1');
      });
      rig.machine.start();
      rig.type('poweroff\r'); // nobody listens
      t.deepEqual(await rig.event('replay-end'), {
        kind: 'replay-end',
        matches: true,
        instructions: recording.instructions,
        guestEnded: false,
      });
      await rig.machine.pause();
      t.is(rig.machine.digest(), recording.digest);
      t.is(output, recording.output);
      t.deepEqual(rig.problems, []);
    },
  );
}

test.serial('a replay notices that a single byte from the disk was another', async (t) => {
  const { chunks } = await record(t, {}, false);
  const changed = Buffer.concat(chunks);
  // The frames' lengths lead to the last that is a read of a disk with data: what came before may be overwritten
  let last = 0;
  for (let at = 0; at < changed.length; at += 4 + changed.readUInt32BE(at)) {
    if (at > 0 && changed[at + 4] === 6 && changed.readUInt32BE(at) > 500) last = at;
  }
  t.true(last > 0, 'the session has read its disk');
  changed[last + 4 + 17 + 3 + 40]! ^= 1;
  await using rig = replayRig([changed]);
  rig.machine.start();
  const { matches } = await rig.event('replay-end');
  t.false(matches);
});

test.serial('a guest that powers off ends its recording, and does so again', async (t) => {
  const chunks: Uint8Array[] = [];
  const rig = new MachineRig({
    icount: { shift: SHIFT, sleep: true, file: { mode: 'record', write: (bytes) => chunks.push(bytes) } },
  });
  rig.machine.start();
  await rig.expect(/ready/);
  rig.type('poweroff 9\r');
  await rig.event('shutdown');
  await rig.machine.close();
  await using again = new MachineRig({ icount: { shift: SHIFT, sleep: true, file: replayOf(chunks) } });
  again.machine.start();
  t.like(await again.event('shutdown'), { reason: 'guest-panic', exitCode: 9 });
  t.like(await again.event('replay-end'), { matches: true, guestEnded: true });
});

test.serial(
  'a recording of another guest, of another machine or with shift=auto is refused before anything runs',
  async (t) => {
    const { chunks } = await record(t, {}, false);
    for (const [name, options, text] of [
      ['harts', { harts: 2 }, /recording has harts 1, this machine 2/],
      ['memory', { ramBytes: 64 << 20 }, /RAM of/],
      ['command line', { append: 'other' }, /boot files/],
      ['disks', { disks: [] }, /boot files/],
    ] as const) {
      t.throws(() => replayRig(chunks, options), { instanceOf: ReplayError, message: text }, name);
    }
    t.throws(
      () => new MachineRig({ icount: { shift: 'auto', sleep: true, file: { mode: 'record', write: () => {} } } }),
      {
        message: /shift=auto/,
      },
    );
  },
);
