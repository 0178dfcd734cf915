import { Digest, readAll } from '../../protocols/bytes/mod.ts';
import { SEED_BYTES } from '../../protocols/replay/mod.ts';
import { sourceOf } from '../machine/boot.ts';
import type { MachineOptions } from '../machine/machine_api.ts';
import type { MachinePlatform } from '../machine/platform.ts';
import { AutoShift, FIRST_SHIFT } from './adjust.ts';
import { InstructionClock } from './clock.ts';
import { Inputs } from './inputs.ts';
import { SeededRandom } from './random.ts';
import { ReplayError } from './replay_error.ts';
import { type ReplayFile, ReplayLog } from './replay_log.ts';

/** `-icount`: time follows from the instructions that were executed. */
export interface InstructionOptions {
  /** Each instruction takes 2^shift `ns`; 'auto' keeps guest time near real time, and is not reproducible */
  readonly shift: number | 'auto';
  /** False: the time of an idle machine moves on at once */
  readonly sleep: boolean;
  readonly file?: ReplayFile;
}

/** 2026-01-01T00:00:00Z: where no recording says otherwise, every run begins at the same moment */
const FIXED_WALL_NS = 1_767_225_600_000_000_000n;
const NS_PER_MS = 1_000_000n;

export interface InstructionParts {
  readonly options: InstructionOptions;
  readonly clock: InstructionClock;
  readonly log: ReplayLog;
  readonly inputs: Inputs;
  readonly random: SeededRandom;
  readonly adjust: AutoShift | undefined;
  readonly soon: (task: () => void) => void;
}

/**
 * What takes the place of the host's clock, randomness and input in a counted run.
 * @throws ReplayError where the recording is of another machine; WireError where it is damaged
 */
export function instructionParts(machine: MachineOptions, platform: MachinePlatform): InstructionParts | undefined {
  const options = machine.icount;
  if (options === undefined) return undefined;
  const log = new ReplayLog(options.file);
  if (log.mode !== 'off' && options.shift === 'auto') {
    throw new ReplayError(`Cannot ${log.mode} with shift=auto: time would follow from the host's`);
  }
  const guest = guestChecksum(machine);
  let shift = options.shift === 'auto' ? FIRST_SHIFT : options.shift;
  let seed = new Uint8Array(SEED_BYTES);
  let wallNs = FIXED_WALL_NS;
  if (log.mode === 'record') {
    platform.fillRandom(seed);
    wallNs = BigInt(Math.round(performance.timeOrigin + performance.now())) * NS_PER_MS;
    log.writeHeader({ shift, harts: machine.harts, ramBytes: machine.ramBytes, wallNs, seed, guest });
  } else if (log.mode === 'replay') {
    const header = log.readHeader();
    const differs = (what: string, found: unknown, here: unknown): void => {
      if (found !== here)
        throw new ReplayError(`Cannot replay: the recording has ${what} ${found}, this machine ${here}`);
    };
    differs('harts', header.harts, machine.harts);
    differs('RAM of', header.ramBytes, machine.ramBytes);
    differs('boot files with the checksum', header.guest, guest);
    shift = header.shift;
    seed = new Uint8Array(header.seed);
    wallNs = header.wallNs;
  }
  const soon = platform.soon ?? ((task: () => void) => void setTimeout(task, 0));
  return {
    options,
    clock: new InstructionClock(shift, wallNs),
    log,
    inputs: new Inputs(log, soon),
    random: new SeededRandom(seed),
    adjust: options.shift === 'auto' ? new AutoShift() : undefined,
    soon,
  };
}

/** Of everything that the guest is started with. */
function guestChecksum(machine: MachineOptions): number {
  const digest = new Digest();
  for (const file of [machine.bios, machine.kernel, machine.initrd, machine.dtb]) {
    if (file === undefined || typeof file === 'string') digest.text(file ?? '');
    else digest.bytes(readAll(sourceOf(file)));
  }
  digest.text(machine.append ?? '');
  digest.text(JSON.stringify([machine.display, machine.network, machine.virtioConsole === true]));
  for (const { bus, backend } of machine.disks) {
    digest.text(JSON.stringify([bus, backend.sizeBytes, backend.readOnly, backend.blockBytes]));
  }
  return Number(digest.value & 0xffff_ffffn);
}
