import test, { type ExecutionContext } from 'ava';
import type { BlockBackend } from '../../../emulator/devices/backends.ts';
import { MachineRig } from '../../fixtures/machine_rig.ts';

// A recording that is not what it was: cut off, changed, put together anew. The replay has to end, with a word that
// says where, or with the state that differs; and the machine has to close. Two harts and a disk.

const DISK_BYTES = 1 << 20;
const SECONDS = 60;

function disk(touched: boolean): BlockBackend {
  const contents = new Uint8Array(DISK_BYTES);
  const there = async (): Promise<void> => {
    if (!touched) throw new Error('touched in a replay');
  };
  return {
    sizeBytes: DISK_BYTES,
    readOnly: false,
    blockBytes: 512,
    read: async (offset, into) => {
      await there();
      into.set(contents.subarray(offset, offset + into.length));
    },
    write: async (offset, data) => {
      await there();
      contents.set(data, offset);
    },
    flush: there,
  };
}

const options = (touched: boolean) =>
  ({ harts: 2, disks: [{ id: 'd0', bus: 'virtio-pci', backend: disk(touched) }] }) as const;

/** The frames of a short session: its header, what came in, its end. */
async function record(t: ExecutionContext, last: string): Promise<Buffer[]> {
  const chunks: Uint8Array[] = [];
  const rig = new MachineRig({
    ...options(true),
    icount: { shift: 3, sleep: false, file: { mode: 'record', write: (bytes) => chunks.push(bytes.slice()) } },
  });
  rig.machine.start();
  await rig.expect(/ready/);
  await rig.ask('disk write 9', /disk[^\n]*\n/);
  await rig.ask('disk read 9', /disk[^\n]*\n/);
  await rig.ask('disk flush', /disk[^\n]*\n/);
  if (last === '') await rig.machine.pause();
  else {
    rig.type(`${last}\r`);
    await rig.event('shutdown');
  }
  await rig.machine.close();
  t.deepEqual(rig.problems, []);
  const whole = Buffer.concat(chunks);
  const frames: Buffer[] = [];
  for (let at = 0; at < whole.length; at += 4 + whole.readUInt32BE(at)) {
    frames.push(whole.subarray(at, at + 4 + whole.readUInt32BE(at)));
  }
  return frames;
}

const KIND = 4;
const ROUND = 5;
const NS = 13;
const DISK_KIND = 6;

/** How a replay ends: the event, or what is said of its failure. It must end, and the machine must close. */
async function replay(t: ExecutionContext, what: string, frames: readonly Buffer[]): Promise<string> {
  const left = [Buffer.concat(frames)];
  let rig: MachineRig;
  try {
    const file = { mode: 'replay', read: () => left.shift() } as const;
    rig = new MachineRig({ ...options(false), icount: { shift: 0, sleep: true, file } });
  } catch (error) {
    return (error as Error).message;
  }
  rig.machine.start();
  const ended = () => rig.events.find((event) => event.kind === 'replay-end');
  for (let tries = 0; tries < SECONDS * 100; tries++) {
    if (rig.machine.status === 'internal-error' || ended() !== undefined) break;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  // Whatever comes behind it
  await new Promise((resolve) => setTimeout(resolve, 50));
  const { status } = rig.machine;
  const end = ended();
  if (end === undefined)
    t.is(
      rig.events.find((event) => event.kind === 'shutdown'),
      undefined,
      `${what}: a good end`,
    );
  t.true(status === 'internal-error' || end !== undefined, `${what}: neither an end nor an error, ${status}`);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<string>((resolve) => {
    timer = setTimeout(resolve, SECONDS * 1000, 'late');
  });
  t.not(await Promise.race([rig.machine.close(), late]), 'late', `${what}: the machine does not close`);
  clearTimeout(timer);
  return end === undefined ? rig.problems.join('\n') : `matches ${end.matches}`;
}

/** Same numbers for the same seed. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const FAILED = /^ERR_REPLAY: Cannot .*\(round \d+, \d+ instructions, [\d.]+ ms\)$/;

test.serial('a replay that fails while a disk is asked ends with a word that says where, and closes', async (t) => {
  t.timeout(4 * SECONDS * 1000);
  const frames = await record(t, '');
  const first = frames.findIndex((frame, index) => index > 0 && frame[KIND] === DISK_KIND);
  t.true(first > 0, 'the session uses its disk');
  const another = (change: (frame: Buffer) => void): Buffer[] => {
    const frame = Buffer.from(frames[first]!);
    change(frame);
    return frames.with(first, frame);
  };
  for (const [what, changed, expected] of [
    ['cut off before', frames.slice(0, first), /disk.*the recording has nothing|the recording was cut off/],
    ['another disk', another((frame) => frame.writeUInt16BE(3, 21)), /asks disk 0 .* of disk 3/],
    ['a later round', another((frame) => frame.writeBigUInt64BE(frame.readBigUInt64BE(ROUND) + 1n, ROUND)), /Cannot/],
    ['left out', frames.toSpliced(first, 1), /Cannot/],
    ['a key in its place', frames.with(first, frames.find((frame, at) => at > 0 && frame[KIND] === 1)!), /Cannot/],
  ] as const) {
    const said = await replay(t, what, changed);
    t.regex(said, FAILED, what);
    t.regex(said, expected, what);
  }
});

test.serial('a guest that ends before its recording does fails the replay', async (t) => {
  t.timeout(2 * SECONDS * 1000);
  const frames = await record(t, 'poweroff 3');
  t.is(await replay(t, 'as it is', frames), 'matches true');
  const end = Buffer.from(frames.at(-1)!);
  end.writeBigUInt64BE(1n << 50n, ROUND);
  const said = await replay(t, 'a later end', frames.with(-1, end));
  t.regex(said, FAILED);
  t.regex(said, /the guest ends in round \d+, the recording goes on with end in round 1125899906842624/);
  t.regex(await replay(t, 'no end', frames.slice(0, -1)), /cut off/);
});

test.serial('a recording with any change ends its replay, and the machine closes: 40 seeds', async (t) => {
  t.timeout(10 * SECONDS * 1000);
  const frames = await record(t, '');
  const seen = { failed: 0, ended: 0 };
  for (let seed = 1; seed <= 40; seed++) {
    const random = numbers(seed * 7919);
    const changed = frames.map((frame) => Buffer.from(frame));
    const at = 1 + random(changed.length - 1);
    const frame = changed[at]!;
    const way = seed % 10;
    const values = [0n, 1n, frame.readBigUInt64BE(ROUND) + BigInt(1 + random(1000)), 1n << 50n, (1n << 53n) - 1n];
    if (way === 0) frame.writeBigUInt64BE(values[random(5)]!, ROUND);
    else if (way === 1) frame.writeBigUInt64BE(values[random(5)]!, NS);
    else if (way === 2) frame[KIND] = 1 + random(9);
    else if (way === 3) frame[4 + random(frame.length - 4)]! ^= 1 << random(8);
    else if (way === 4) frame.writeUInt32BE(random(2) === 0 ? 0xffff_ffff : frame.length - 4 + random(9) - 4);
    else if (way === 5) changed.splice(at, 1);
    else if (way === 6) changed.splice(at, 0, frame);
    else if (way === 7) changed.length = at;
    else if (way === 8) changed[at] = frame.subarray(0, 4 + random(frame.length - 4));
    else for (const later of changed.slice(at)) later.writeBigUInt64BE(later.readBigUInt64BE(ROUND) + 77n, ROUND);
    const said = await replay(t, `seed ${seed}, record ${at} of ${frames.length}`, changed);
    if (said.startsWith('matches')) seen.ended++;
    else {
      seen.failed++;
      t.regex(said, /^(?:ERR_REPLAY: )?Cannot /, `seed ${seed}`);
    }
  }
  t.log(JSON.stringify(seen));
  t.true(seen.failed > 10);
});
