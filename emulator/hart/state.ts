import * as H from '../kernel/assembly/hart_layout.ts';
import { StateReader } from '../state/read_state.ts';
import { StateError, type Stateful, type StateValue } from '../state/state.ts';

/** 64-bit fields by their specification names */
const WIDE = {
  pc: H.HART_PC,
  mstatus: H.HART_MSTATUS,
  mie: H.HART_MIE,
  medeleg: H.HART_MEDELEG,
  mideleg: H.HART_MIDELEG,
  mtvec: H.HART_MTVEC,
  mscratch: H.HART_MSCRATCH,
  mepc: H.HART_MEPC,
  mcause: H.HART_MCAUSE,
  mtval: H.HART_MTVAL,
  stvec: H.HART_STVEC,
  sscratch: H.HART_SSCRATCH,
  sepc: H.HART_SEPC,
  scause: H.HART_SCAUSE,
  stval: H.HART_STVAL,
  satp: H.HART_SATP,
  menvcfg: H.HART_MENVCFG,
  senvcfg: H.HART_SENVCFG,
  stimecmp: H.HART_STIMECMP,
  instretEnd: H.HART_INSTRET_END,
  cycleOffset: H.HART_CYCLE_OFFSET,
  instretOffset: H.HART_INSTRET_OFFSET,
} as const;
const WORDS = {
  privilege: H.HART_PRIV,
  fs: H.HART_FS,
  fflags: H.HART_FFLAGS,
  frm: H.HART_FRM,
  fuel: H.HART_FUEL,
  mcounteren: H.HART_MCOUNTEREN,
  scounteren: H.HART_SCOUNTEREN,
  mcountinhibit: H.HART_MCOUNTINHIBIT,
  seipSoftware: H.HART_SEIP_SOFTWARE,
  builtinSbi: H.HART_BUILTIN_SBI,
  hsm: H.HART_HSM,
} as const;
/** Bits that the kernel's writeStatus lets through */
const MSTATUS_BITS = 0x7e19aan;
/** FIOM, CBIE, CBCFE, CBZE; in menvcfg ADUE, PBMTE and STCE too */
const SENVCFG_BITS = 0xf1n;
const MENVCFG_BITS = SENVCFG_BITS | (7n << 61n);
const PMP_ENTRIES = 16;
const PMP_ADDRESS_BITS = 54n;
/** Pins that belong to the hart's own state; the others follow from the devices */
const MIP_SOFTWARE = (1 << 1) | (1 << 5);

/** A hart's registers in the shared memory, saved and loaded while it stands; the hart refreshes what it derives. */
export class HartState implements Stateful {
  readonly stateName: string;
  readonly stateVersion = 1;
  readonly #view: DataView;
  readonly #words: Int32Array;
  readonly #base: number;

  constructor(buffer: SharedArrayBuffer, base: number, id: number) {
    this.#view = new DataView(buffer);
    this.#words = new Int32Array(buffer);
    this.#base = base;
    this.stateName = `hart${id}`;
  }

  saveState(): StateValue {
    const state: Record<string, StateValue> = {};
    for (const [name, offset] of Object.entries(WIDE)) state[name] = this.#view.getBigUint64(this.#base + offset, true);
    for (const [name, offset] of Object.entries(WORDS)) state[name] = this.#view.getUint32(this.#base + offset, true);
    state.x = this.#registers(H.HART_X);
    state.f = this.#registers(H.HART_F);
    state.pmpcfg = new Uint8Array(this.#view.buffer, this.#base + H.HART_PMPCFG, PMP_ENTRIES).slice();
    state.pmpaddr = Array.from({ length: PMP_ENTRIES }, (_, i) =>
      this.#view.getBigUint64(this.#base + H.HART_PMPADDR + i * 8, true),
    );
    state.mip = Atomics.load(this.#words, (this.#base + H.HART_MIP) >> 2) & MIP_SOFTWARE;
    return state;
  }

  #registers(at: number): StateValue {
    return Array.from({ length: 32 }, (_, i) => this.#view.getBigUint64(this.#base + at + i * 8, true));
  }

  prepareState(value: unknown, version: number): () => void {
    const path = this.stateName;
    if (version !== this.stateVersion) throw new StateError(path, `version ${version}, expected ${this.stateVersion}`);
    const reader = new StateReader(path, value);
    const wide = Object.entries(WIDE).map(([name, offset]) => [offset, reader.u64(name)] as const);
    const words = Object.entries(WORDS).map(([name, offset]) => [offset, reader.u32(name)] as const);
    const list = (name: string, length: number): bigint[] => {
      const values = reader.list(name, length, (item, where) => {
        const number = typeof item === 'number' && Number.isSafeInteger(item) ? BigInt(item) : item;
        if (typeof number !== 'bigint' || number < 0n || number >> 64n !== 0n) {
          throw new StateError(where, 'expected an unsigned 64-bit integer');
        }
        return number;
      });
      if (values.length !== length) throw new StateError(`${path}.${name}`, `expected ${length} values`);
      return values;
    };
    const x = list('x', 32);
    const f = list('f', 32);
    const pmpaddr = list('pmpaddr', PMP_ENTRIES);
    const pmpcfg = reader.bytes('pmpcfg', PMP_ENTRIES, PMP_ENTRIES);
    const mip = reader.u32('mip');
    this.#validate(reader, x, pmpcfg, pmpaddr, mip);
    return () => {
      for (const [offset, field] of wide) this.#view.setBigUint64(this.#base + offset, field, true);
      for (const [offset, field] of words) this.#view.setUint32(this.#base + offset, field, true);
      for (let i = 0; i < 32; i++) {
        this.#view.setBigUint64(this.#base + H.HART_X + i * 8, x[i]!, true);
        this.#view.setBigUint64(this.#base + H.HART_F + i * 8, f[i]!, true);
      }
      for (let i = 0; i < PMP_ENTRIES; i++) {
        this.#view.setUint8(this.#base + H.HART_PMPCFG + i, pmpcfg[i]!);
        this.#view.setBigUint64(this.#base + H.HART_PMPADDR + i * 8, pmpaddr[i]!, true);
      }
      this.#view.setUint32(this.#base + H.HART_TRAPPED, 0, true);
      // A reservation does not survive a move: SC fails once, as it may at any time
      this.#view.setBigUint64(this.#base + H.HART_RESERVATION, 0n, true);
      const index = (this.#base + H.HART_MIP) >> 2;
      Atomics.and(this.#words, index, ~MIP_SOFTWARE);
      Atomics.or(this.#words, index, mip);
    };
  }

  /** What no hart of ours can have been in. */
  #validate(
    reader: StateReader,
    x: readonly bigint[],
    pmpcfg: Uint8Array,
    pmpaddr: readonly bigint[],
    mip: number,
  ): void {
    const path = this.stateName;
    const check = (ok: boolean, field: string, text: string): void => {
      if (!ok) throw new StateError(`${path}.${field}`, text);
    };
    check(x[0] === 0n, 'x.0', 'x0 is not zero');
    check((reader.u64('pc') & 1n) === 0n, 'pc', 'odd');
    check([0, 1, 3].includes(reader.u32('privilege')), 'privilege', 'not U, S or M');
    reader.integer('fs', 0, 3);
    reader.integer('fflags', 0, 31);
    reader.integer('frm', 0, 7);
    reader.integer('seipSoftware', 0, 1);
    reader.integer('builtinSbi', 0, 1);
    reader.integer('hsm', 0, 4);
    check((reader.u64('mstatus') & ~MSTATUS_BITS) === 0n, 'mstatus', 'reserved bits are set');
    check(((reader.u64('mstatus') >> 11n) & 3n) !== 2n, 'mstatus', 'MPP is no mode');
    const mode = Number(reader.u64('satp') >> 60n);
    check(mode === 0 || (mode >= 8 && mode <= 10), 'satp', 'reserved mode');
    for (const name of ['mtvec', 'stvec'] as const) check((reader.u64(name) & 3n) < 2n, name, 'reserved mode');
    for (const name of ['mepc', 'sepc'] as const) check((reader.u64(name) & 1n) === 0n, name, 'odd');
    check((reader.u64('mideleg') & ~0x222n) === 0n, 'mideleg', 'bits that cannot be delegated');
    check((reader.u64('medeleg') & ~0xb3ffn) === 0n, 'medeleg', 'bits that cannot be delegated');
    check((reader.u64('mie') & ~0xaaan) === 0n, 'mie', 'bits that do not exist');
    check(
      pmpcfg.every((byte) => (byte & 0x60) === 0 && (byte & 3) !== 2),
      'pmpcfg',
      'reserved bits',
    );
    check(
      pmpaddr.every((address) => address >> PMP_ADDRESS_BITS === 0n),
      'pmpaddr',
      'addresses of more than 56 bits',
    );
    check((reader.u64('menvcfg') & ~MENVCFG_BITS) === 0n, 'menvcfg', 'reserved bits are set');
    check((reader.u64('senvcfg') & ~SENVCFG_BITS) === 0n, 'senvcfg', 'reserved bits are set');
    for (const name of ['menvcfg', 'senvcfg'] as const) {
      check(((reader.u64(name) >> 4n) & 3n) !== 2n, name, 'reserved CBIE');
    }
    check((reader.u32('mcountinhibit') & 2) === 0, 'mcountinhibit', 'bits that do not exist');
    check((mip & ~MIP_SOFTWARE) === 0, 'mip', 'bits that devices drive');
  }
}
