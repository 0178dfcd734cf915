// Instructions that touch privileged state. The interpreter stores HART_PC, calls, and goes on at HART_PC.
import { blockAddress, dirtied } from './access';
import { csrFault, readCsr, refreshInterrupts, writeCsr } from './csr';
import { instructionAt } from './decode';
import { HART } from './hart';
import * as H from './hart_layout';
import { ACCESS_READ, ACCESS_WRITE } from './pmp';
import * as R from './registers';
import { flushAll, flushPage, flushSpace } from './tlb';
import { fenceInstructions } from './translation';
import {
  CAUSE_BREAKPOINT,
  CAUSE_ECALL_U,
  CAUSE_ILLEGAL,
  pendingInterrupts,
  returnFromMachine,
  returnFromSupervisor,
  takeInterrupt,
  trap,
  updateFpFast,
} from './trap';

// As in isa/emitter.ts SYSTEM_NAMES
const ECALL: u32 = 0;
const EBREAK: u32 = 1;
const MRET: u32 = 2;
const SRET: u32 = 3;
const WFI: u32 = 4;
const SFENCE_VMA: u32 = 5;
const SINVAL_VMA: u32 = 6;
const SFENCE_W_INVAL: u32 = 7;
const SFENCE_INVAL_IR: u32 = 8;
const FENCE_I: u32 = 9;
const CSRRW: u32 = 10;
const CSRRCI: u32 = 15;
const CBO_INVAL: u32 = 16;
const CBO_ZERO: u32 = 19;

/** Illegal instruction at HART_PC, whose bits `word` gives. */
export function illegalInstruction(word: u64): void {
  trap(CAUSE_ILLEGAL, word);
}

/** The same where the word is not at hand. */
export function illegalHere(): void {
  trap(CAUSE_ILLEGAL, instructionAt(R.get64(H.HART_PC)));
}

/** Runs a slot's instruction; gives how the run ends: EXIT_FUEL to go on at HART_PC. */
export function system(code: u32, slot: u32): u32 {
  return systemWord(code, load<u64>(slot + H.SLOT_IMM), load<u8>(slot + H.SLOT_LENGTH));
}

/** The same for an instruction's bits, and its length in bytes */
export function systemWord(code: u32, word: u64, length: u32): u32 {
  const pc = R.get64(H.HART_PC);
  const next = pc + <u64>length;
  const priv = R.get32(H.HART_PRIV);
  const status = R.get64(H.HART_MSTATUS);

  if (code >= CSRRW && code <= CSRRCI) {
    accessCsr(code, <u32>word, next);
    return <u32>word >> 20 == 0x14d && R.get32(H.HART_ICOUNT) != 0 ? H.EXIT_ATTENTION : H.EXIT_FUEL;
  }
  if (code >= CBO_INVAL) {
    cacheBlock(code, <u32>word, next);
    return H.EXIT_FUEL;
  }
  switch (code) {
    case ECALL:
      if (priv == R.PRIV_S && R.get32(H.HART_BUILTIN_SBI) != 0) {
        R.set64(H.HART_PC, next);
        return H.EXIT_SBI;
      }
      trap(CAUSE_ECALL_U + priv, 0);
      return H.EXIT_FUEL;
    case EBREAK:
      trap(CAUSE_BREAKPOINT, pc);
      return H.EXIT_FUEL;
    case MRET:
      if (priv != R.PRIV_M) break;
      returnFromMachine();
      takeInterrupt();
      return H.EXIT_FUEL;
    case SRET:
      if (priv == R.PRIV_U || (priv == R.PRIV_S && (status & R.TSR) != 0)) break;
      returnFromSupervisor();
      takeInterrupt();
      return H.EXIT_FUEL;
    case WFI:
      if (priv == R.PRIV_U || (priv == R.PRIV_S && (status & R.TW) != 0)) break;
      R.set64(H.HART_PC, next);
      refreshInterrupts();
      if ((pendingInterrupts() & R.get64(H.HART_MIE)) == 0) return H.EXIT_WFI;
      takeInterrupt();
      return H.EXIT_FUEL;
    case SFENCE_VMA:
    case SINVAL_VMA:
      if (priv == R.PRIV_U || (priv == R.PRIV_S && (status & R.TVM) != 0)) break;
      fenceMappings((<u32>word >> 15) & 31, (<u32>word >> 20) & 31);
      R.set64(H.HART_PC, next);
      return H.EXIT_FUEL;
    case SFENCE_W_INVAL:
    case SFENCE_INVAL_IR:
      if (priv == R.PRIV_U) break;
      R.set64(H.HART_PC, next);
      return H.EXIT_FUEL;
    case FENCE_I:
      fenceInstructions();
      R.set64(H.HART_PC, next);
      return H.EXIT_FUEL;
    default:
      break;
  }
  illegalInstruction(word);
  return H.EXIT_FUEL;
}

/**
 * Privileged specification, "sfence.vma": the leaf at an address where rs1 names a register, and what is not global of one
 * address space where rs2 does. Of a space that is not the current one there is nothing; a leaf is forgotten even if it
 * is global.
 */
function fenceMappings(rs1: u32, rs2: u32): void {
  if (rs2 != 0 && (R.getX(rs2) & 0xffff) != ((R.get64(H.HART_SATP) >> 44) & 0xffff)) return;
  if (rs1 != 0) flushPage(R.getX(rs1));
  else if (rs2 != 0) flushSpace();
  else flushAll();
}

/** Zicsr: csrrw does not read where rd is x0; csrrs and csrrc do not write where rs1 is x0 or the immediate 0. */
function accessCsr(code: u32, word: u32, next: u64): void {
  const csr = word >> 20;
  const rd = (word >> 7) & 31;
  const field = (word >> 15) & 31;
  const immediate = code >= CSRRW + 3;
  const op = (code - CSRRW) % 3;
  const operand = immediate ? <u64>field : R.getX(field);
  const writes = op == 0 || field != 0;
  const priv = R.get32(H.HART_PRIV);
  if (((csr >> 8) & 3) > priv || (writes && csr >> 10 == 3)) {
    illegalInstruction(word);
    return;
  }
  const old = readCsr(csr);
  if (csrFault) {
    illegalInstruction(word);
    return;
  }
  if (writes) {
    let base = old;
    // SEIP reads as pin or software bit, but read-modify-write sees the software bit only (3.1.9)
    if (csr == 0x344 && op != 0) base = (old & ~(1 << 9)) | (<u64>R.get32(H.HART_SEIP_SOFTWARE) << 9);
    writeCsr(csr, op == 0 ? operand : op == 1 ? base | operand : base & ~operand);
  }
  R.setX(rd, old);
  R.set64(H.HART_PC, next);
  // Only these can make an interrupt deliverable
  if (writes && (csr == 0x300 || csr == 0x100 || csr == 0x304 || csr == 0x104 || csr == 0x344 || csr == 0x144 ||
    csr == 0x303 || csr == 0x14d)) takeInterrupt();
}

/** Zicbom and Zicboz. Caches do not exist, so clean and flush only check; inval may not lose data and does the same. */
function cacheBlock(code: u32, word: u32, next: u64): void {
  const priv = R.get32(H.HART_PRIV);
  const m = R.get64(H.HART_MENVCFG);
  const s = R.get64(H.HART_SENVCFG);
  const need = code == CBO_ZERO ? R.ENVCFG_CBZE : code == CBO_INVAL ? R.ENVCFG_CBIE : R.ENVCFG_CBCFE;
  if ((priv != R.PRIV_M && (m & need) == 0) || (priv == R.PRIV_U && (s & need) == 0)) {
    illegalInstruction(word);
    return;
  }
  const va = R.getX((word >> 15) & 31);
  const host = blockAddress(va, code == CBO_ZERO ? ACCESS_WRITE : ACCESS_READ);
  if (host == 0) return;
  if (code == CBO_ZERO) {
    memory.fill(host, 0, 64);
    dirtied(host);
  }
  R.set64(H.HART_PC, next);
}

/** Before each run: requests and timers, then interrupts. EXIT_FUEL where the hart may run on. */
export function pollHart(): u32 {
  const attention = refreshInterrupts();
  takeInterrupt();
  R.set32(H.HART_TRAPPED, 0);
  return attention != 0 ? H.EXIT_ATTENTION : H.EXIT_FUEL;
}

/** Gives the next run `fuel` instructions; minstret counts what was really retired. */
export function refuel(fuel: u32): void {
  R.set64(H.HART_INSTRET_END, R.get64(H.HART_INSTRET_END) - <u64>R.get32(H.HART_FUEL) + <u64>fuel);
  R.set32(H.HART_FUEL, fuel);
}

/** Takes a pending interrupt, after a wait or a request from outside. */
export function interruptHart(): void {
  R.set32(H.HART_TRAPPED, 0);
  takeInterrupt();
}

/** The rounding mode of a floating-point instruction; FS becomes dirty. 8 where it is illegal (trap taken). */
export function beginFloat(rm: u32): u32 {
  const mode = rm == 7 ? R.get32(H.HART_FRM) : rm;
  if (R.get32(H.HART_FS) == 0 || mode > 4) {
    illegalHere();
    return 8;
  }
  R.set32(H.HART_FS, 3);
  updateFpFast();
  return mode;
}

/** What depends on registers that were just loaded from a saved state. */
export function refreshDerived(): void {
  flushAll();
  memory.fill(HART + H.HART_DTLB_SETS, 0xff, 4 * H.DTLB_SET_BYTES);
  updateFpFast();
}
