import type { Readable, Writable } from 'node:stream';

/**
 * A guest's serial line. What it says is taken piece by piece: each wait goes on where the one before ended, so a
 * long output is looked through once.
 */
export class SerialLine {
  readonly #to: Writable;
  /** What no wait has taken */
  #text = '';
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(from: Readable, to: Writable) {
    this.#to = to;
    to.on('error', () => {}); // the guest has ended, which every wait tells
    from.on('data', (chunk: Uint8Array) => {
      this.#text += Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length).toString('latin1');
      this.#wake?.();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake?.();
    };
    from.on('close', end);
    from.on('end', end);
    from.on('error', () => {});
  }

  write(text: string): void {
    this.#to.write(text, 'latin1');
  }

  /**
   * Waits for `marker` and takes all up to its end; gives what came before it.
   * @throws Error after `timeoutMs`, or when the line has ended
   */
  async until(marker: string, timeoutMs: number): Promise<string> {
    const deadline = performance.now() + timeoutMs;
    // Looked through already, without the last characters, which may be the beginning of the marker: joining it with
    // every chunk that comes would take a time that grows with the square of the output
    const passed: string[] = [];
    let rest = '';
    for (;;) {
      const window = rest + this.#text;
      const at = window.indexOf(marker);
      if (at >= 0) {
        this.#text = window.slice(at + marker.length);
        passed.push(window.slice(0, at));
        return passed.join('');
      }
      const kept = Math.max(0, window.length - marker.length + 1);
      passed.push(window.slice(0, kept));
      rest = window.slice(kept);
      this.#text = '';
      const leftMs = deadline - performance.now();
      if (this.#ended || leftMs <= 0) {
        this.#text = passed.join('') + rest;
        const why = this.#ended ? 'its line has ended' : `not in ${timeoutMs} ms`;
        throw new Error(
          `The guest did not say ${JSON.stringify(marker)} (${why}): …${JSON.stringify(this.#text.slice(-600))}`,
        );
      }
      await this.#more(leftMs);
    }
  }

  #more(timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        this.#wake = undefined;
        resolve();
      };
      const timer = setTimeout(wake, timeoutMs);
      this.#wake = wake;
    });
  }
}
