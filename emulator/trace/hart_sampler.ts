import type { Hart } from '../hart/hart.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import { MAX_CALLERS, SampleRing } from './sample_ring.ts';

const RA = 1;
const SP = 2;
const FP = 8;
const PAGE_MASK = 0xfffn;
/** A stack may be this deep below its frame pointer, in `bytes` */
const MAX_FRAME = 1n << 20n;
/** Return addresses whose code was looked at; forgotten all at once */
const MAX_KNOWN = 1 << 14;

/**
 * Takes samples of a hart, on its thread, at the end of a run: there the registers are exact, and a run ends
 * anywhere, so that no place is more likely than another. The main thread asks at random moments.
 */
export class HartSampler {
  readonly #hart: Hart;
  readonly #ring: SampleRing;
  readonly #view: DataView;
  /** Whether a call stands before an address */
  readonly #calls = new Map<bigint, boolean>();
  #seen: number;
  #page = -1n;
  #pageHost = 0;

  constructor(hart: Hart, ring: SharedArrayBuffer, memory: SharedArrayBuffer) {
    this.#hart = hart;
    this.#ring = new SampleRing(ring);
    this.#view = new DataView(memory);
    this.#seen = this.#ring.requested;
  }

  /** After a run, and after a wait for a device: a sample where one was asked for. */
  check(): void {
    const weight = this.#due();
    if (weight > 0) this.#take(weight);
  }

  /** After a sleep: what was asked for meanwhile found nothing running. */
  skip(): void {
    this.#due();
  }

  #due(): number {
    const { requested } = this.#ring;
    const due = (requested - this.#seen) | 0;
    this.#seen = requested;
    return due;
  }

  #take(weight: number): void {
    const hart = this.#hart;
    const privilege = hart.get32(H.HART_PRIV);
    this.#page = -1n; // mappings may be others than last time
    this.#ring.put({ weight, privilege, pc: hart.pc, ra: this.#returnAddress(), callers: this.#unwind(privilege) });
  }

  /** ra, where a call stands before it; else 0 */
  #returnAddress(): bigint {
    const ra = this.#hart.x(RA);
    return this.#afterCall(ra) ? ra : 0n;
  }

  /**
   * By frame pointers (RISC-V ELF psABI, "Frame Pointer Convention"): ra at fp − 8, the caller's fp at fp − 16.
   * Code that has none keeps anything in s0, so each step must lead to the instruction behind a call.
   */
  #unwind(privilege: number): bigint[] {
    const callers: bigint[] = [];
    const sp = this.#hart.x(SP);
    let fp = this.#hart.x(FP);
    let floor = sp;
    while (callers.length < MAX_CALLERS) {
      if ((fp & 7n) !== 0n || fp <= floor || fp - floor > MAX_FRAME) break;
      const ra = this.#load64(fp - 8n);
      const next = this.#load64(fp - 16n);
      if (ra === undefined || next === undefined || !this.#afterCall(ra)) break;
      callers.push(ra);
      // A kernel's interrupt stack lies anywhere beside the one that was interrupted
      floor = privilege === 0 || next > fp ? fp : next - 1n;
      fp = next;
    }
    return callers;
  }

  #afterCall(address: bigint): boolean {
    if (address < 4n || (address & 1n) !== 0n) return false;
    const known = this.#calls.get(address);
    if (known !== undefined) return known;
    const high = this.#load16(address - 2n);
    const low = this.#load16(address - 4n);
    const is = high !== undefined && isCall(low, high);
    if (this.#calls.size >= MAX_KNOWN) this.#calls.clear();
    this.#calls.set(address, is);
    return is;
  }

  #load64(va: bigint): bigint | undefined {
    if ((va & 7n) !== 0n) return undefined;
    const host = this.#translate(va);
    return host === 0 ? undefined : this.#view.getBigUint64(host, true);
  }

  #load16(va: bigint): number | undefined {
    const host = this.#translate(va);
    return host === 0 ? undefined : this.#view.getUint16(host, true);
  }

  /** Host address; 0 where a load would fault. One page is remembered: a stack seldom has more. */
  #translate(va: bigint): number {
    const page = va & ~PAGE_MASK;
    if (page !== this.#page) {
      this.#page = page;
      this.#pageHost = this.#hart.peekHost(page, 4096);
    }
    return this.#pageHost === 0 ? 0 : this.#pageHost + Number(va & PAGE_MASK);
  }
}

/** jal or jalr that keeps ra or t0, or c.jalr, just before the address behind these halfwords. */
function isCall(low: number | undefined, high: number): boolean {
  if ((high & 0xf07f) === 0x9002 && (high & 0x0f80) !== 0) return true;
  if (low === undefined || (low & 3) !== 3) return false;
  const opcode = low & 0x7f;
  const rd = (low >> 7) & 31;
  return (opcode === 0x6f || (opcode === 0x67 && (low & 0x7000) === 0)) && (rd === 1 || rd === 5);
}
