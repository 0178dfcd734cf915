import { writeSync } from 'node:fs';

/** Where the harts' threads write their log; plain data, posted to each. */
export interface LogTarget {
  readonly fd: number;
  /** One i32: what all threads have written, in KiB; made by {@link logTarget} */
  readonly written: SharedArrayBuffer;
  /** A log ends there, in `bytes` */
  readonly limitBytes: number;
  /** What goes beyond it is dropped and counted, in `bytes`; absent: as fast as it can be written */
  readonly bytesPerSecond?: number;
}

/** A guest in a loop of traps writes a gigabyte in a minute: the disk is the user's */
const LIMIT_BYTES = 1 << 30;
/** A terminal behind a pipe shows no more than this anyway */
const TERMINAL_BYTES_PER_SECOND = 1 << 20;

/** `file`: a descriptor of one, or undefined for the process's standard error. */
export function logTarget(file: number | undefined): LogTarget {
  const written = new SharedArrayBuffer(4);
  return file === undefined
    ? { fd: 2, written, limitBytes: LIMIT_BYTES, bytesPerSecond: TERMINAL_BYTES_PER_SECOND }
    : { fd: file, written, limitBytes: LIMIT_BYTES };
}

/** Writes text as it comes, within the target's limits. For one thread; `now` in `ms`. */
export class LogSink {
  readonly #target: LogTarget;
  readonly #written: Int32Array;
  readonly #now: () => number;
  readonly #writeBytes: (bytes: Uint8Array) => void;
  #allowance: number;
  #lastMs: number;
  #lostLines = 0;
  #ended = false;

  constructor(
    target: LogTarget,
    now: () => number = () => performance.now(),
    writeBytes: (bytes: Uint8Array) => void = (bytes) => writeAll(target.fd, bytes),
  ) {
    this.#target = target;
    this.#written = new Int32Array(target.written);
    this.#now = now;
    this.#writeBytes = writeBytes;
    this.#allowance = target.bytesPerSecond ?? 0;
    this.#lastMs = now();
  }

  readonly write = (text: string): void => {
    if (this.#ended) return;
    const bytes = Buffer.from(text, 'latin1');
    if (!this.#mayWrite(bytes.length)) {
      this.#lostLines += countLines(bytes);
      return;
    }
    const kib = Math.ceil(bytes.length / 1024);
    if (Atomics.add(this.#written, 0, kib) + kib > this.#target.limitBytes / 1024) {
      this.#ended = true;
      this.#put(Buffer.from(`… the log ends here: its limit is ${this.#target.limitBytes} bytes\n`));
      return;
    }
    if (this.#lostLines > 0) {
      this.#put(Buffer.from(`… ${this.#lostLines} lines were dropped: too many for this output; -D FILE takes all\n`));
      this.#lostLines = 0;
    }
    this.#put(bytes);
  };

  #mayWrite(length: number): boolean {
    const { bytesPerSecond } = this.#target;
    if (bytesPerSecond === undefined) return true;
    const now = this.#now();
    this.#allowance = Math.min(bytesPerSecond, this.#allowance + ((now - this.#lastMs) / 1000) * bytesPerSecond);
    this.#lastMs = now;
    if (length > this.#allowance) return false;
    this.#allowance -= length;
    return true;
  }

  #put(bytes: Uint8Array): void {
    try {
      this.#writeBytes(bytes);
    } catch {
      // A full disk or a closed pipe: the guest runs on without a log
      this.#ended = true;
    }
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  let at = 0;
  while (at < bytes.length) {
    try {
      at += writeSync(fd, bytes, at, bytes.length - at);
    } catch (error) {
      // The pipe is full: what is left of this piece is lost rather than the hart stopped
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return;
      throw error;
    }
  }
}

function countLines(bytes: Uint8Array): number {
  let lines = 0;
  for (const byte of bytes) if (byte === 0x0a) lines++;
  return lines;
}
