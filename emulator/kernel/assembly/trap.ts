// Traps and interrupts: privileged specification, "Machine-Level ISA" 3.1.6–3.1.15, "Supervisor-Level ISA" 4.1.
import { hostLog } from './env';
import { HART } from './hart';
import * as H from './hart_layout';
import { flushAll, updateModes } from './tlb';
import * as R from './registers';

export const CAUSE_FETCH_MISALIGNED: u64 = 0;
export const CAUSE_FETCH_ACCESS: u64 = 1;
export const CAUSE_ILLEGAL: u64 = 2;
export const CAUSE_BREAKPOINT: u64 = 3;
export const CAUSE_LOAD_MISALIGNED: u64 = 4;
export const CAUSE_LOAD_ACCESS: u64 = 5;
export const CAUSE_STORE_MISALIGNED: u64 = 6;
export const CAUSE_STORE_ACCESS: u64 = 7;
export const CAUSE_ECALL_U: u64 = 8;
export const CAUSE_FETCH_PAGE: u64 = 12;
export const CAUSE_LOAD_PAGE: u64 = 13;
export const CAUSE_STORE_PAGE: u64 = 15;
const INTERRUPT: u64 = 1 << 63;

function uncountInstruction(): void {
  R.set64(H.HART_INSTRET_END, R.get64(H.HART_INSTRET_END) - 1);
}

/** Takes a trap at HART_PC: leaves the handler's address there and sets HART_TRAPPED. */
export function trap(cause: u64, tval: u64): void {
  R.set32(H.HART_TRAPPED, 1);
  const pc = R.get64(H.HART_PC);
  const priv = R.get32(H.HART_PRIV);
  const status = R.get64(H.HART_MSTATUS);
  const code = cause & ~INTERRUPT;
  const interrupt = (cause & INTERRUPT) != 0;
  R.count(interrupt ? H.COUNT_INTERRUPTS : H.COUNT_EXCEPTIONS);
  if (R.get32(H.HART_LOG) & H.LOG_INT) hostLog(H.LOG_INT, cause, tval, 0);
  // Fuel was spent on the instruction, but it did not retire (privileged specification 3.3.1)
  if (!interrupt) uncountInstruction();
  const delegated = code < 64 && ((R.get64(interrupt ? H.HART_MIDELEG : H.HART_MEDELEG) >> code) & 1) != 0;
  let vector: u64;
  if (priv <= R.PRIV_S && delegated) {
    R.set64(H.HART_SCAUSE, cause);
    R.set64(H.HART_SEPC, pc);
    R.set64(H.HART_STVAL, tval);
    let next = status & ~(R.SIE | R.SPIE | R.SPP);
    if (status & R.SIE) next |= R.SPIE;
    if (priv == R.PRIV_S) next |= R.SPP;
    R.set64(H.HART_MSTATUS, next);
    R.set32(H.HART_PRIV, R.PRIV_S);
    vector = R.get64(H.HART_STVEC);
  } else {
    R.set64(H.HART_MCAUSE, cause);
    R.set64(H.HART_MEPC, pc);
    R.set64(H.HART_MTVAL, tval);
    let next = status & ~(R.MIE | R.MPIE | R.MPP);
    if (status & R.MIE) next |= R.MPIE;
    next |= <u64>priv << 11;
    R.set64(H.HART_MSTATUS, next);
    R.set32(H.HART_PRIV, R.PRIV_M);
    vector = R.get64(H.HART_MTVEC);
  }
  const base = vector & ~3;
  R.set64(H.HART_PC, (vector & 3) == 1 && interrupt ? base + code * 4 : base);
  updateModes();
}

/** Pins, timers and software bits together, as `mip` reads. */
export function pendingInterrupts(): u64 {
  let pending = <u64>(<u32>atomic.load<i32>(HART + H.HART_MIP));
  if (R.get32(H.HART_SEIP_SOFTWARE)) pending |= 1 << 9;
  return pending;
}

/** Takes the interrupt of highest priority that is pending and enabled; true where one was taken. */
export function takeInterrupt(): bool {
  const pending = pendingInterrupts() & R.get64(H.HART_MIE);
  if (pending == 0) return false;
  const priv = R.get32(H.HART_PRIV);
  const status = R.get64(H.HART_MSTATUS);
  const mideleg = R.get64(H.HART_MIDELEG);
  let ready: u64 = 0;
  if (priv < R.PRIV_M || (status & R.MIE) != 0) ready = pending & ~mideleg;
  if (ready == 0 && (priv < R.PRIV_S || (priv == R.PRIV_S && (status & R.SIE) != 0))) ready = pending & mideleg;
  if (ready == 0) return false;
  // Privileged specification 3.1.9: MEI, MSI, MTI, SEI, SSI, STI
  let code: u64 = 5;
  if (ready & (1 << 11)) code = 11;
  else if (ready & (1 << 3)) code = 3;
  else if (ready & (1 << 7)) code = 7;
  else if (ready & (1 << 9)) code = 9;
  else if (ready & (1 << 1)) code = 1;
  trap(INTERRUPT | code, 0);
  return true;
}

export function returnFromMachine(): void {
  const status = R.get64(H.HART_MSTATUS);
  const priv = <u32>((status & R.MPP) >> 11);
  let next = status & ~(R.MIE | R.MPP);
  if (status & R.MPIE) next |= R.MIE;
  next |= R.MPIE;
  if (priv != R.PRIV_M) next &= ~R.MPRV;
  R.set64(H.HART_MSTATUS, next);
  R.set32(H.HART_PRIV, priv);
  R.set64(H.HART_PC, R.get64(H.HART_MEPC));
  updateModes();
}

export function returnFromSupervisor(): void {
  const status = R.get64(H.HART_MSTATUS);
  let next = status & ~(R.SIE | R.SPP | R.MPRV);
  if (status & R.SPIE) next |= R.SIE;
  next |= R.SPIE;
  R.set64(H.HART_MSTATUS, next);
  R.set32(H.HART_PRIV, (status & R.SPP) != 0 ? R.PRIV_S : R.PRIV_U);
  R.set64(H.HART_PC, R.get64(H.HART_SEPC));
  updateModes();
}

/** Sets mstatus' writable bits but FS; TLBs follow. */
export function writeStatus(value: u64): void {
  const old = R.get64(H.HART_MSTATUS);
  let next = value & (R.SIE | R.MIE | R.SPIE | R.MPIE | R.SPP | R.MPP | R.MPRV | R.SUM | R.MXR | R.TVM | R.TW | R.TSR);
  // MPP is WARL: 2 is no mode
  if ((next & R.MPP) == 2 << 11) next = (next & ~R.MPP) | (old & R.MPP);
  R.set64(H.HART_MSTATUS, next);
  R.set32(H.HART_FS, <u32>((value & R.FS) >> 13));
  updateFpFast();
  // Entries were filled with the old meaning of "readable"
  if ((old ^ next) & R.MXR) flushAll();
  updateModes();
}

/** Native arithmetic is exact where nothing can be learned from its flags: NX stands already, rounding is RNE. */
export function updateFpFast(): void {
  R.set32(
    H.HART_FP_FAST,
    R.get32(H.HART_FS) == 3 && R.get32(H.HART_FRM) == 0 && (R.get32(H.HART_FFLAGS) & 1) != 0 ? 1 : 0,
  );
}
