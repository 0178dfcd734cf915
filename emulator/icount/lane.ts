import type { AccessSize } from '../devices/device.ts';
import { Hart, type HartHost } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import { HartSbi } from '../machine/hart_sbi.ts';
import { HartLog } from '../trace/hart_log.ts';
import { HartSampler } from '../trace/hart_sampler.ts';
import type { RunnerOptions } from './runner.ts';

/** One hart of a counted run, with what belongs to it alone. */
export interface Lane {
  readonly hart: Hart;
  readonly sbi: HartSbi;
  readonly log: HartLog | undefined;
  readonly sampler: HartSampler | undefined;
  /** In WFI, until an interrupt is pending */
  waiting: boolean;
}

/** What a lane asks its runner for, while its hart runs. */
export interface LaneRun {
  /** Guest time in ticks, at the instruction that is executed now */
  now(): number;
  poll(hart: Hart): void;
  /** A device that works by promises was written to */
  touch(): void;
}

/** `all`: whom a fence of this hart reaches, asked when there is one. */
export function makeLane(options: RunnerOptions, id: number, run: LaneRun, all: () => readonly Lane[]): Lane {
  const { memory, layout, bus, mainBus, devices, signals, guest, trace, writeTrace } = options;
  let log: HartLog | undefined;
  const host: HartHost = {
    now: run.now,
    poll: () => {
      run.poll(all()[id]!.hart);
      return 0;
    },
    mmioRead: (address, size) => {
      const value = bus.read(address, size as AccessSize);
      if (value < 0) log?.invalidAccess('read', address, size);
      return value;
    },
    mmioWrite: (address, size, value) => {
      if (mainBus.find(address, size) !== undefined) run.touch();
      const done = bus.write(address, size as AccessSize, value);
      if (!done) log?.invalidAccess('write', address, size);
      return done;
    },
    log: (kind, first, second, third) => log?.event(kind, first, second, third),
  };
  const hart = new Hart(memory, layout, id, host);
  if (trace !== undefined) log = new HartLog(hart, trace, writeTrace ?? (() => {}));
  hart.set32(H.HART_ICOUNT, 1);
  const sbi = new HartSbi({
    hart,
    signals,
    memory: guest,
    devices,
    serveFences: () => {},
    // The others stand between two of their runs
    fence: (kind, harts) => {
      for (const lane of all()) {
        if ((harts & (1 << lane.hart.id)) === 0) continue;
        if (kind === 'fence.i') lane.hart.flushInstructions();
        else lane.hart.flushTranslations();
      }
    },
  });
  const { samples } = options;
  const sampler =
    samples === undefined ? undefined : new HartSampler(hart, samples[id]!, memory.buffer as SharedArrayBuffer);
  return { hart, sbi, log, sampler, waiting: false };
}
