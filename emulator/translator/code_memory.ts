/**
 * What one module keeps in the engine beside its code, whatever its size, in `bytes`: measured with V8 14, 16 KiB of its
 * own records and at least a page of code
 */
const MODULE_BYTES = 20 << 10;
/** Machine code, tables and records for a byte of WebAssembly, in `bytes`: measured with V8 14, before and after tiering */
const PER_CODE_BYTE = 3;
/**
 * All that translations may take in one machine, in `bytes`. The process, guest RAM excluded, is to stay below 256 MiB
 * whatever a guest of one hart makes it translate: it takes 110 to 130 MiB without any, the slots of the interpreter
 * 32, and what was forgotten is still there until the collector has run.
 */
export const MACHINE_CODE_BYTES = 80 << 20;
/** And no hart less than that: it would forget what an honest guest needs all the time */
const LEAST_CODE_BYTES = 24 << 20;

/** Estimates what the translations of one hart take in the engine, which tells nobody. */
export class CodeMemory {
  readonly #limitBytes: number;
  readonly #collect: (() => void) | undefined;
  #liveBytes = 0;
  /** Forgotten, and not collected yet */
  #droppedBytes = 0;

  /** `collect`: makes the engine give back what nothing refers to; a thread that never ends its task must ask for it */
  constructor(options: { readonly limitBytes: number; readonly collect?: (() => void) | undefined }) {
    this.#limitBytes = options.limitBytes;
    this.#collect = options.collect;
  }

  /** For each of so many harts */
  static limitFor(harts: number): number {
    return Math.max(LEAST_CODE_BYTES, Math.floor(MACHINE_CODE_BYTES / harts));
  }

  /** Everything that is kept must be forgotten before more is added. */
  get isFull(): boolean {
    return this.#liveBytes + this.#droppedBytes > this.#limitBytes;
  }

  /** A module of so many bytes was compiled. */
  add(moduleBytes: number): void {
    this.#liveBytes += MODULE_BYTES + moduleBytes * PER_CODE_BYTE;
  }

  /** All modules were forgotten: nothing refers to them any more. */
  drop(): void {
    this.#droppedBytes += this.#liveBytes;
    this.#liveBytes = 0;
    // Collecting takes as long for few as for many
    if (this.#droppedBytes < this.#limitBytes / 2) return;
    this.#droppedBytes = 0;
    this.#collect?.();
  }
}
