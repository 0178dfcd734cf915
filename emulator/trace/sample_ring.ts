// Samples of a hart on their way to the main thread: a ring in shared memory, one writer, one reader.

const HEADER_BYTES = 64;
/** i32s of the header */
const REQUESTED = 0;
const WRITTEN = 1;
const READ = 2;
const LOST = 3;

/** u64s of a record: header, pc, ra, then return addresses */
const RECORD_WORDS = 64;
export const MAX_CALLERS = RECORD_WORDS - 3;
/** More than the reader lets gather, many times over */
const RECORDS = 512;

export interface Sample {
  /** How many looks it stands for */
  readonly weight: number;
  /** 0 U, 1 S, 3 M */
  readonly privilege: number;
  readonly pc: bigint;
  /** Register ra; it may hold an old address */
  readonly ra: bigint;
  /** Return addresses by the frame pointers, innermost first */
  readonly callers: readonly bigint[];
}

export class SampleRing {
  readonly #header: Int32Array;
  readonly #records: BigUint64Array;

  constructor(buffer: SharedArrayBuffer) {
    this.#header = new Int32Array(buffer, 0, HEADER_BYTES / 4);
    this.#records = new BigUint64Array(buffer, HEADER_BYTES, RECORDS * RECORD_WORDS);
  }

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer(HEADER_BYTES + RECORDS * RECORD_WORDS * 8);
  }

  // --- the reader, on the main thread ---------------------------------------------------------------------------

  request(): void {
    Atomics.add(this.#header, REQUESTED, 1);
  }

  /** Samples that had no room, since the start */
  get lost(): number {
    return Atomics.load(this.#header, LOST);
  }

  /** Takes what there is; the shared memory is not trusted beyond its bounds. */
  drain(take: (sample: Sample) => void): void {
    const written = Atomics.load(this.#header, WRITTEN);
    let read = this.#header[READ]!;
    for (let left = RECORDS; read !== written && left > 0; left--) {
      const at = ((read >>> 0) % RECORDS) * RECORD_WORDS;
      const head = this.#records[at]!;
      const count = Math.min(Number((head >> 40n) & 0xffn), MAX_CALLERS);
      take({
        weight: Number(head & 0xffff_ffffn),
        privilege: Number((head >> 32n) & 3n),
        pc: this.#records[at + 1]!,
        ra: this.#records[at + 2]!,
        callers: [...this.#records.subarray(at + 3, at + 3 + count)],
      });
      read = (read + 1) | 0;
    }
    Atomics.store(this.#header, READ, read);
  }

  // --- the writer, on the hart's thread ---------------------------------------------------------------------------

  /** Looks that were asked for so far */
  get requested(): number {
    return this.#header[REQUESTED]!;
  }

  put({ weight, privilege, pc, ra, callers }: Sample): void {
    const written = this.#header[WRITTEN]!;
    if (((written - Atomics.load(this.#header, READ)) | 0) >= RECORDS) {
      Atomics.add(this.#header, LOST, weight);
      return;
    }
    const at = ((written >>> 0) % RECORDS) * RECORD_WORDS;
    const count = Math.min(callers.length, MAX_CALLERS);
    this.#records[at] = BigInt(weight >>> 0) | (BigInt(privilege) << 32n) | (BigInt(count) << 40n);
    this.#records[at + 1] = pc;
    this.#records[at + 2] = ra;
    for (let index = 0; index < count; index++) this.#records[at + 3 + index] = callers[index]!;
    Atomics.store(this.#header, WRITTEN, (written + 1) | 0);
  }
}
