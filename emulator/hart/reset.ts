import * as H from '../kernel/assembly/hart_layout.ts';

export interface HartStart {
  readonly id: number;
  readonly pc: number | bigint;
  readonly a0: number | bigint;
  readonly a1: number | bigint;
  /** True: S-mode, as an M-mode firmware leaves it, with our SBI answering its calls. False: M-mode at power-on */
  readonly supervisor: boolean;
}

/** Hart registers at power-on (privileged specification 3.4) over zeroed state; the hart refreshes what it derives. */
export function resetHartRegisters(buffer: SharedArrayBuffer, base: number, start: HartStart): void {
  const view = new DataView(buffer, base, H.HART_STRIDE);
  const wide = (offset: number, value: number | bigint): void =>
    view.setBigUint64(offset, BigInt.asUintN(64, BigInt(value)), true);
  wide(H.HART_PC, start.pc);
  wide(H.HART_X + 10 * 8, start.a0);
  wide(H.HART_X + 11 * 8, start.a1);
  view.setUint32(H.HART_ID, start.id, true);
  view.setUint32(H.HART_PRIV, start.supervisor ? 1 : 3, true);
  view.setUint32(H.HART_BUILTIN_SBI, start.supervisor ? 1 : 0, true);
  view.setFloat64(H.HART_STIMECMP_TICKS, Number.POSITIVE_INFINITY, true);
  // Hardware updates A and D unless software asks for faults (Svadu without Svade)
  wide(H.HART_MENVCFG, 1n << 61n);
  if (!start.supervisor) return;
  wide(H.HART_MEDELEG, 0xb1ff);
  wide(H.HART_MIDELEG, 0x222);
  view.setUint32(H.HART_MCOUNTEREN, 0xffff_ffff, true);
  // CBIE 3, CBCFE, CBZE; ADUE, PBMTE, STCE
  wide(H.HART_MENVCFG, (0xfn << 4n) | (7n << 61n));
  wide(H.HART_STIMECMP, -1n);
  view.setUint32(H.HART_FS, 1, true);
}
