import process from 'node:process';
import { formatBytes } from '../../format.ts';

const BAR_CELLS = 30;
const STEP_MS = 100;

export interface ProgressTarget {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

/** `-p`: a bar on a terminal; elsewhere the line that qemu-img prints, for scripts that read it. */
export class ImageProgress {
  readonly #target: ProgressTarget;
  readonly #totalBytes: number;
  readonly #startedMs = performance.now();
  #shownMs = Number.NEGATIVE_INFINITY;

  constructor(totalBytes: number, target: ProgressTarget = process.stdout) {
    this.#target = target;
    this.#totalBytes = totalBytes;
    this.show(0);
  }

  readonly show = (doneBytes: number): void => {
    const now = performance.now();
    if (now - this.#shownMs < STEP_MS && doneBytes < this.#totalBytes) return;
    this.#shownMs = now;
    const part = this.#totalBytes === 0 ? 1 : Math.min(1, doneBytes / this.#totalBytes);
    if (this.#target.isTTY !== true) {
      this.#target.write(`    (${(part * 100).toFixed(2)}/100%)\r`);
      return;
    }
    const cells = Math.floor(part * BAR_CELLS);
    const seconds = (now - this.#startedMs) / 1000;
    const speed = seconds > 0.5 ? `, ${formatBytes(doneBytes / seconds)}/s` : '';
    const text = `${formatBytes(doneBytes)} of ${formatBytes(this.#totalBytes)}${speed}`;
    const bar = `${'#'.repeat(cells)}${'.'.repeat(BAR_CELLS - cells)}`;
    this.#target.write(`\r\x1b[K[${bar}] ${Math.floor(part * 100)} % ${text}`);
  };

  end(): void {
    this.#shownMs = Number.NEGATIVE_INFINITY;
    this.show(this.#totalBytes);
    this.#target.write('\n');
  }
}
