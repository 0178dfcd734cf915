import { type BlockBackend, BlockError } from '../../../../emulator/devices/backends.ts';

/** A disk in memory that notes what was asked of it, and can be slow or broken. */
export class MemoryBackend implements BlockBackend {
  readonly data: Uint8Array;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly log: string[] = [];
  failing: Error | undefined;
  /** Requests wait here while set */
  gate: Promise<void> | undefined;
  running = 0;
  mostRunning = 0;

  constructor(sizeBytes: number, options: { readOnly?: boolean; blockBytes?: number } = {}) {
    this.data = new Uint8Array(sizeBytes);
    this.sizeBytes = sizeBytes;
    this.readOnly = options.readOnly ?? false;
    this.blockBytes = options.blockBytes ?? 512;
  }

  async #serve(line: string, work: () => void): Promise<void> {
    this.log.push(line);
    this.running++;
    this.mostRunning = Math.max(this.mostRunning, this.running);
    try {
      await this.gate;
      if (this.failing !== undefined) throw this.failing;
      work();
    } finally {
      this.running--;
    }
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#serve(`read ${offset}+${into.length}`, () =>
      into.set(this.data.subarray(offset, offset + into.length)),
    );
  }
  write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    return this.#serve(`write ${offset}+${data.length}${options?.fua === true ? ' fua' : ''}`, () => {
      if (this.readOnly) throw new BlockError('EPERM', 'Cannot write: read-only');
      this.data.set(data, offset);
    });
  }
  flush(): Promise<void> {
    return this.#serve('flush', () => {});
  }
  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#serve(`discard ${offset}+${lengthBytes}`, () => {});
  }
  writeZeroes(offset: number, lengthBytes: number, options?: { mayUnmap?: boolean }): Promise<void> {
    return this.#serve(`zeroes ${offset}+${lengthBytes}${options?.mayUnmap === true ? ' unmap' : ''}`, () =>
      this.data.fill(0, offset, offset + lengthBytes),
    );
  }
}
