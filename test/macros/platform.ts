import type { Clock, HartSignals, InterruptLine } from '../../emulator/devices/device.ts';

/** Remembers what devices sent to the harts. */
export class RecordedSignals implements HartSignals {
  readonly harts: number;
  readonly mip: number[];
  readonly kicks: number[];

  constructor(harts: number) {
    this.harts = harts;
    this.mip = new Array<number>(harts).fill(0);
    this.kicks = new Array<number>(harts).fill(0);
  }

  setPending(hart: number, bit: number, level: boolean): void {
    if (level) this.mip[hart]! |= 1 << bit;
    else this.mip[hart]! &= ~(1 << bit);
  }

  kick(hart: number): void {
    this.kicks[hart]!++;
  }

  pending(hart: number, bit: number): boolean {
    return (this.mip[hart]! & (1 << bit)) !== 0;
  }
}

/** A clock that stands until it is told. */
export class FakeClock implements Clock {
  now = 0;
  wall = 1_700_000_000_000_000_000n;

  ticks(): number {
    return this.now;
  }

  wallNs(): bigint {
    return this.wall;
  }
}

export class RecordedLine implements InterruptLine {
  level = false;
  /** Rising edges */
  raised = 0;

  set(level: boolean): void {
    if (level && !this.level) this.raised++;
    this.level = level;
  }
}

export function sharedWords(count: number): Int32Array {
  return new Int32Array(new SharedArrayBuffer(count * 4));
}
