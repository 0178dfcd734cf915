import type { DebianProgress } from '../../guests/debian/mod.ts';

const MIB = 1 << 20;
const QUIET_STEP_PERCENT = 25;

export interface ProgressTarget {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

/** Shows the steps of a preparation: one line that changes on a terminal, few lines elsewhere. */
export class ProgressLine {
  readonly #target: ProgressTarget;
  #open = false;
  #last = '';
  #lastStep = -1;

  constructor(target: ProgressTarget) {
    this.#target = target;
  }

  readonly show = (event: DebianProgress): void => {
    const line = `caisson: ${describeProgress(event)}`;
    if (this.#target.isTTY === true) {
      this.#target.write(`\r\x1b[K${line}`);
      this.#open = true;
      return;
    }
    // A log is told each step once, and each quarter of the download.
    const percent = percentOf(event);
    const step = percent === undefined ? -1 : Math.floor(percent / QUIET_STEP_PERCENT);
    const key = event.phase === 'download' ? event.phase : line;
    if (key === this.#last && step === this.#lastStep) return;
    this.#last = key;
    this.#lastStep = step;
    this.#target.write(`${line}\n`);
  };

  /** The next output starts on a line of its own. */
  end(): void {
    if (this.#open) this.#target.write('\n');
    this.#open = false;
  }
}

function percentOf({ doneBytes, totalBytes }: DebianProgress): number | undefined {
  if (doneBytes === undefined || totalBytes === undefined || totalBytes === 0) return undefined;
  return Math.min(100, Math.floor((doneBytes / totalBytes) * 100));
}

export function describeProgress(event: DebianProgress): string {
  if (event.phase === 'wait') return `waits: ${event.text}`;
  if (event.phase === 'index') return `fetches the ${event.text}`;
  if (event.phase === 'unpack') return `unpacks ${event.text}`;
  if (event.phase === 'assemble') return `puts together the ${event.text}`;
  const percent = percentOf(event);
  if (percent === undefined) return `fetches ${event.text}`;
  const mib = (bytes: number) => (bytes / MIB).toFixed(0);
  return `fetches ${event.text}: ${mib(event.doneBytes!)} of ${mib(event.totalBytes!)} MiB, ${percent} %`;
}
