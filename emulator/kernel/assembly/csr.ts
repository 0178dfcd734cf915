// Control and status registers: privileged specification, "CSR Listing". What is not listed here does not exist.
import { HART } from './hart';
import { hostPoll, now } from './env';
import * as H from './hart_layout';
import { readPmpAddress, readPmpConfig, writePmpAddress, writePmpConfig } from './pmp';
import * as R from './registers';
import { flushAll, flushSpace } from './tlb';
import { pendingInterrupts, updateFpFast, writeStatus } from './trap';

const S_INTERRUPTS: u64 = (1 << 1) | (1 << 5) | (1 << 9);
const M_INTERRUPTS: u64 = (1 << 3) | (1 << 7) | (1 << 11);
/** RV64, extensions A C D F I M S U */
const MISA: u64 = (<u64>2 << 62) | 0x14112d;
const SSTATUS: u64 = R.SIE | R.SPIE | R.SPP | R.SUM | R.MXR;
/** Exceptions that may be delegated: all but ecall from M, and the reserved ones */
const MEDELEG: u64 = 0xb3ff;
const INSTRET_HPM: u32 = 0xffffffff;
const MENVCFG: u64 =
  R.MENVCFG_FIOM | R.ENVCFG_CBIE | R.ENVCFG_CBCFE | R.ENVCFG_CBZE | R.MENVCFG_ADUE | R.MENVCFG_PBMTE | R.MENVCFG_STCE;
const SENVCFG: u64 = R.MENVCFG_FIOM | R.ENVCFG_CBIE | R.ENVCFG_CBCFE | R.ENVCFG_CBZE;

const SATP_ASID: u64 = 0x0ffff00000000000;

/** Set by read and write where the access is illegal */
export let csrFault: bool = false;

function illegal(): u64 {
  csrFault = true;
  return 0;
}

export function ticks(): u64 {
  return <u64>now();
}

export function retired(): u64 {
  return R.get64(H.HART_INSTRET_END) - <u64>R.get32(H.HART_FUEL);
}

// mcountinhibit: while a bit is set, the counter stands at the value in its own word; else that word is added
const INHIBIT_CY: u32 = 1;
const INHIBIT_IR: u32 = 4;

/** mcycle or minstret as the instruction that reads it sees it: itself not counted. */
function counter(inhibit: u32, offsetAt: u32): u64 {
  const offset = R.get64(offsetAt);
  return R.get32(H.HART_MCOUNTINHIBIT) & inhibit ? offset : retired() - 1 + offset;
}

/** The next instruction reads what is written here. */
function setCounter(inhibit: u32, offsetAt: u32, value: u64): void {
  R.set64(offsetAt, R.get32(H.HART_MCOUNTINHIBIT) & inhibit ? value : value - retired());
}

function writeCountInhibit(value: u32): void {
  const old = R.get32(H.HART_MCOUNTINHIBIT);
  const next = value & ~2; // time cannot be stopped; the other counters stand at zero anyway
  const cycles = counter(INHIBIT_CY, H.HART_CYCLE_OFFSET);
  const instructions = counter(INHIBIT_IR, H.HART_INSTRET_OFFSET);
  R.set32(H.HART_MCOUNTINHIBIT, next);
  if ((old ^ next) & INHIBIT_CY) setCounter(INHIBIT_CY, H.HART_CYCLE_OFFSET, cycles);
  if ((old ^ next) & INHIBIT_IR) setCounter(INHIBIT_IR, H.HART_INSTRET_OFFSET, instructions);
}

/** sstatus and mstatus share their bits; FS lives apart, SD follows from it. */
function status(mask: u64): u64 {
  const fs = <u64>R.get32(H.HART_FS);
  let value = (R.get64(H.HART_MSTATUS) & mask) | (fs << 13);
  if (fs == 3) value |= (<u64>1) << 63;
  return value;
}

/** True where the counter (0 cycle, 1 time, 2 instret, 3… hpm) may be read now. */
function counterEnabled(index: u32): bool {
  const priv = R.get32(H.HART_PRIV);
  if (priv == R.PRIV_M) return true;
  if (((R.get32(H.HART_MCOUNTEREN) >> index) & 1) == 0) return false;
  return priv == R.PRIV_S || ((R.get32(H.HART_SCOUNTEREN) >> index) & 1) != 0;
}

/** stimecmp: M always; S where menvcfg.STCE and mcounteren.TM allow ("Sstc") */
function timerAllowed(): bool {
  if (R.get32(H.HART_PRIV) == R.PRIV_M) return true;
  return (R.get64(H.HART_MENVCFG) & R.MENVCFG_STCE) != 0 && (R.get32(H.HART_MCOUNTEREN) & 2) != 0;
}

/** After stimecmp, STCE or time changed: STIP follows the comparison. */
export function updateSupervisorTimer(): void {
  if ((R.get64(H.HART_MENVCFG) & R.MENVCFG_STCE) == 0) {
    store<f64>(HART + H.HART_STIMECMP_TICKS, Infinity);
    return;
  }
  const deadline = R.get64(H.HART_STIMECMP);
  store<f64>(HART + H.HART_STIMECMP_TICKS, deadline >= 1 << 53 ? Infinity : <f64>deadline);
  if (ticks() >= deadline) atomic.or<i32>(HART + H.HART_MIP, 1 << 5);
  else atomic.and<i32>(HART + H.HART_MIP, ~(1 << 5));
}

function fpOff(): bool {
  return R.get32(H.HART_FS) == 0;
}

/** Reads a CSR that `HART_PRIV` may access; csrFault where it does not exist or is not allowed now. */
export function readCsr(csr: u32): u64 {
  csrFault = false;
  switch (csr) {
    case 0x001:
      return fpOff() ? illegal() : <u64>R.get32(H.HART_FFLAGS);
    case 0x002:
      return fpOff() ? illegal() : <u64>R.get32(H.HART_FRM);
    case 0x003:
      return fpOff() ? illegal() : <u64>(R.get32(H.HART_FFLAGS) | (R.get32(H.HART_FRM) << 5));
    case 0xc00:
      return counterEnabled(0) ? counter(INHIBIT_CY, H.HART_CYCLE_OFFSET) : illegal();
    case 0xc01:
      return counterEnabled(1) ? ticks() : illegal();
    case 0xc02:
      return counterEnabled(2) ? counter(INHIBIT_IR, H.HART_INSTRET_OFFSET) : illegal();
    case 0x100:
      return status(SSTATUS) | 0x200000000;
    case 0x104:
      return R.get64(H.HART_MIE) & R.get64(H.HART_MIDELEG);
    case 0x105:
      return R.get64(H.HART_STVEC);
    case 0x106:
      return <u64>R.get32(H.HART_SCOUNTEREN);
    case 0x10a:
      return R.get64(H.HART_SENVCFG);
    case 0x140:
      return R.get64(H.HART_SSCRATCH);
    case 0x141:
      return R.get64(H.HART_SEPC);
    case 0x142:
      return R.get64(H.HART_SCAUSE);
    case 0x143:
      return R.get64(H.HART_STVAL);
    case 0x144:
      return pendingInterrupts() & R.get64(H.HART_MIDELEG);
    case 0x14d:
      return timerAllowed() ? R.get64(H.HART_STIMECMP) : illegal();
    case 0x180:
      return satpTrapped() ? illegal() : R.get64(H.HART_SATP);
    case 0x300:
      return status(~0) | R.UXL_SXL;
    case 0x301:
      return MISA;
    case 0x302:
      return R.get64(H.HART_MEDELEG);
    case 0x303:
      return R.get64(H.HART_MIDELEG);
    case 0x304:
      return R.get64(H.HART_MIE);
    case 0x305:
      return R.get64(H.HART_MTVEC);
    case 0x306:
      return <u64>R.get32(H.HART_MCOUNTEREN);
    case 0x30a:
      return R.get64(H.HART_MENVCFG);
    case 0x320:
      return <u64>R.get32(H.HART_MCOUNTINHIBIT);
    case 0x340:
      return R.get64(H.HART_MSCRATCH);
    case 0x341:
      return R.get64(H.HART_MEPC);
    case 0x342:
      return R.get64(H.HART_MCAUSE);
    case 0x343:
      return R.get64(H.HART_MTVAL);
    case 0x344:
      return pendingInterrupts();
    case 0xb00:
      return counter(INHIBIT_CY, H.HART_CYCLE_OFFSET);
    case 0xb02:
      return counter(INHIBIT_IR, H.HART_INSTRET_OFFSET);
    case 0xf11:
    case 0xf12:
    case 0xf13:
    case 0xf15:
      return 0;
    case 0xf14:
      return <u64>R.get32(H.HART_ID);
    default:
      break;
  }
  if (csr == 0x3a0 || csr == 0x3a2) return readPmpConfig(csr - 0x3a0);
  if (csr >= 0x3b0 && csr <= 0x3bf) return readPmpAddress(csr - 0x3b0);
  // Sixty-four entries may be addressed; those above sixteen read zero
  if (csr >= 0x3a4 && csr <= 0x3ae && (csr & 1) == 0) return 0;
  if (csr >= 0x3c0 && csr <= 0x3ef) return 0;
  // Zihpm: counters and events exist and stay zero
  if (csr >= 0xb03 && csr <= 0xb1f) return 0;
  if (csr >= 0x323 && csr <= 0x33f) return 0;
  if (csr >= 0xc03 && csr <= 0xc1f) return counterEnabled(csr - 0xc00) ? 0 : illegal();
  return illegal();
}

function satpTrapped(): bool {
  return R.get32(H.HART_PRIV) == R.PRIV_S && (R.get64(H.HART_MSTATUS) & R.TVM) != 0;
}

function setFcsr(flags: u32, rounding: u32): void {
  R.set32(H.HART_FFLAGS, flags & 31);
  R.set32(H.HART_FRM, rounding & 7);
  R.set32(H.HART_FS, 3);
  updateFpFast();
}

function writeInterruptPending(value: u64, mask: u64): void {
  if (mask & (1 << 1)) {
    if (value & (1 << 1)) atomic.or<i32>(HART + H.HART_MIP, 1 << 1);
    else atomic.and<i32>(HART + H.HART_MIP, ~(1 << 1));
  }
  // With Sstc the comparison alone drives STIP
  if ((mask & (1 << 5)) != 0 && (R.get64(H.HART_MENVCFG) & R.MENVCFG_STCE) == 0) {
    if (value & (1 << 5)) atomic.or<i32>(HART + H.HART_MIP, 1 << 5);
    else atomic.and<i32>(HART + H.HART_MIP, ~(1 << 5));
  }
  if (mask & (1 << 9)) R.set32(H.HART_SEIP_SOFTWARE, <u32>((value >> 9) & 1));
}

function writeSatp(value: u64): void {
  const mode = <u32>(value >> 60);
  // An unsupported mode leaves the register as it was (privileged specification, "satp")
  if (mode != 0 && (mode < 8 || mode > 10)) return;
  const changed = R.get64(H.HART_SATP) ^ value;
  if (changed == 0) return;
  R.set64(H.HART_SATP, value);
  // Of a space with the same number, whoever writes it has to fence; what was before is not kept all the same
  if (changed >> 60 == 0 && (changed & SATP_ASID) != 0) flushSpace();
  else flushAll();
}

/** Writes a CSR that exists and may be written. */
export function writeCsr(csr: u32, value: u64): void {
  csrFault = false;
  switch (csr) {
    case 0x001:
      setFcsr(<u32>value, R.get32(H.HART_FRM));
      return;
    case 0x002:
      setFcsr(R.get32(H.HART_FFLAGS), <u32>value);
      return;
    case 0x003:
      setFcsr(<u32>value, <u32>value >> 5);
      return;
    case 0x100: {
      const mask = SSTATUS | R.FS;
      const fs = <u64>R.get32(H.HART_FS) << 13;
      writeStatus(((R.get64(H.HART_MSTATUS) | fs) & ~mask) | (value & mask));
      return;
    }
    case 0x104: {
      const delegated = R.get64(H.HART_MIDELEG);
      R.set64(H.HART_MIE, (R.get64(H.HART_MIE) & ~delegated) | (value & delegated & (S_INTERRUPTS | M_INTERRUPTS)));
      return;
    }
    case 0x105:
      if ((value & 3) < 2) R.set64(H.HART_STVEC, value);
      return;
    case 0x106:
      R.set32(H.HART_SCOUNTEREN, <u32>value);
      return;
    case 0x10a:
      R.set64(H.HART_SENVCFG, legalCbie(value & SENVCFG));
      return;
    case 0x140:
      R.set64(H.HART_SSCRATCH, value);
      return;
    case 0x141:
      R.set64(H.HART_SEPC, value & ~1);
      return;
    case 0x142:
      R.set64(H.HART_SCAUSE, value);
      return;
    case 0x143:
      R.set64(H.HART_STVAL, value);
      return;
    case 0x144:
      writeInterruptPending(value, (1 << 1) & R.get64(H.HART_MIDELEG));
      return;
    case 0x14d:
      R.set64(H.HART_STIMECMP, value);
      updateSupervisorTimer();
      return;
    case 0x180:
      writeSatp(value);
      return;
    case 0x300:
      writeStatus(value);
      return;
    case 0x301:
      return; // WARL: nothing can be switched off
    case 0x302:
      R.set64(H.HART_MEDELEG, value & MEDELEG);
      return;
    case 0x303:
      R.set64(H.HART_MIDELEG, value & S_INTERRUPTS);
      return;
    case 0x304:
      R.set64(H.HART_MIE, value & (S_INTERRUPTS | M_INTERRUPTS));
      return;
    case 0x305:
      if ((value & 3) < 2) R.set64(H.HART_MTVEC, value);
      return;
    case 0x306:
      R.set32(H.HART_MCOUNTEREN, <u32>value & INSTRET_HPM);
      return;
    case 0x30a:
      writeMenvcfg(value);
      return;
    case 0x320:
      writeCountInhibit(<u32>value);
      return;
    case 0x340:
      R.set64(H.HART_MSCRATCH, value);
      return;
    case 0x341:
      R.set64(H.HART_MEPC, value & ~1);
      return;
    case 0x342:
      R.set64(H.HART_MCAUSE, value);
      return;
    case 0x343:
      R.set64(H.HART_MTVAL, value);
      return;
    case 0x344:
      writeInterruptPending(value, S_INTERRUPTS);
      return;
    case 0xb00:
      setCounter(INHIBIT_CY, H.HART_CYCLE_OFFSET, value);
      return;
    case 0xb02:
      setCounter(INHIBIT_IR, H.HART_INSTRET_OFFSET, value);
      return;
    default:
      break;
  }
  if (csr == 0x3a0 || csr == 0x3a2) {
    writePmpConfig(csr - 0x3a0, value);
    return;
  }
  if (csr >= 0x3b0 && csr <= 0x3bf) writePmpAddress(csr - 0x3b0, value);
  // The rest that can be read ignores writes
}

/** CBIE 2 is reserved: it becomes 0. */
function legalCbie(value: u64): u64 {
  return (value & R.ENVCFG_CBIE) == 2 << 4 ? value & ~R.ENVCFG_CBIE : value;
}

function writeMenvcfg(value: u64): void {
  const next = legalCbie(value & MENVCFG);
  const old = R.get64(H.HART_MENVCFG);
  R.set64(H.HART_MENVCFG, next);
  if ((old ^ next) & (R.MENVCFG_ADUE | R.MENVCFG_PBMTE)) flushAll();
  if ((old ^ next) & R.MENVCFG_STCE) {
    if ((next & R.MENVCFG_STCE) == 0) atomic.and<i32>(HART + H.HART_MIP, ~(1 << 5));
    updateSupervisorTimer();
  }
}

/** mip and the timers are looked at again before a wait or after an enable. */
export function refreshInterrupts(): i32 {
  return hostPoll();
}
