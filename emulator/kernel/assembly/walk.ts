// Address translation: privileged specification 10.3–10.6 (Sv39, Sv48, Sv57), Svpbmt, Svadu.
import { hostAddress, hostLog, isRam, DIRTY_AT, ROM_AT } from './env';
import * as H from './hart_layout';
import { ACCESS_EXECUTE, ACCESS_READ, ACCESS_WRITE, pmpAllows } from './pmp';
import * as R from './registers';
import { noteSuperpage } from './tlb';
import { CAUSE_FETCH_ACCESS, CAUSE_FETCH_PAGE, CAUSE_LOAD_ACCESS, CAUSE_LOAD_PAGE, CAUSE_STORE_ACCESS, CAUSE_STORE_PAGE } from './trap';

const PTE_V: u64 = 1;
const PTE_R: u64 = 2;
const PTE_W: u64 = 4;
const PTE_X: u64 = 8;
const PTE_U: u64 = 16;
const PTE_G: u64 = 32;
const PTE_A: u64 = 64;
const PTE_D: u64 = 128;
const PTE_RESERVED: u64 = 0x1fc0000000000000;
const PTE_PBMT: u64 = 0x6000000000000000;
const PTE_N: u64 = 0x8000000000000000;

/** Results of the last walk: physical address; rights beyond the one asked for */
export let walkedPa: u64 = 0;
export let walkedReadable: bool = false;
export let walkedWritable: bool = false;
/** Host address of the leaf entry that the last walk ended at, 0 where nothing is translated; what it was; its level */
export let walkedEntry: u32 = 0;
export let walkedValue: u64 = 0;
export let walkedLevel: u32 = 0;
/** The same in every address space */
export let walkedGlobal: bool = false;

export function pageFault(access: u32): u64 {
  return access == ACCESS_EXECUTE ? CAUSE_FETCH_PAGE : access == ACCESS_WRITE ? CAUSE_STORE_PAGE : CAUSE_LOAD_PAGE;
}
export function accessFault(access: u32): u64 {
  return access == ACCESS_EXECUTE ? CAUSE_FETCH_ACCESS : access == ACCESS_WRITE ? CAUSE_STORE_ACCESS : CAUSE_LOAD_ACCESS;
}

/** Marks the page of a host address as stored to, for every consumer of the dirty map. */
// @ts-ignore: decorator
@inline
export function markDirty(host: u32): void {
  store<u8>(DIRTY_AT + ((host - ROM_AT) >> 12), 0xff);
}

let keepsEntries: bool = false;

/** As `walk`, for looks that are no access of the guest's: an entry that an access would mark counts as absent. */
export function walkUnmarked(va: u64, access: u32, priv: u32): u64 {
  keepsEntries = true;
  const cause = walkUnlogged(va, access, priv);
  keepsEntries = false;
  return cause;
}

/** Translates for one access that the guest makes; gives 0 and sets the walked values, or the cause of the exception. */
export function walk(va: u64, access: u32, priv: u32): u64 {
  const cause = walkUnlogged(va, access, priv);
  if (R.get32(H.HART_LOG) & H.LOG_MMU) {
    hostLog(H.LOG_MMU, va, cause == 0 ? walkedPa : 0, access | (priv << 3) | (<u32>cause << 8));
  }
  return cause;
}

/** The same for a look of our own: a log of the guest's accesses does not show it. */
export function walkUnlogged(va: u64, access: u32, priv: u32): u64 {
  const satp = R.get64(H.HART_SATP);
  const mode = <u32>(satp >> 60);
  if (priv == R.PRIV_M || mode == 0) {
    walkedPa = va;
    walkedReadable = true;
    walkedWritable = true;
    walkedEntry = 0;
    walkedGlobal = false;
    // Physical addresses have 56 bits
    return va >> 56 ? accessFault(access) : 0;
  }
  R.count(H.COUNT_PAGE_WALKS);
  const levels = mode - 5; // 8 → 3, 9 → 4, 10 → 5
  const bits = 12 + levels * 9;
  const sign = <i64>va >> (bits - 1);
  if (sign != 0 && sign != -1) return pageFault(access);
  const status = R.get64(H.HART_MSTATUS);
  const envcfg = R.get64(H.HART_MENVCFG);

  while (true) {
    let table = (satp & 0xfffffffffff) << 12;
    let level = levels;
    let retry = false;
    while (level > 0) {
      level--;
      const shift = 12 + level * 9;
      const pteAddress = table + (((va >> shift) & 511) << 3);
      const host = hostAddress(pteAddress, 8);
      if (host == 0 || !isRam(host)) return accessFault(access);
      if (!pmpAllows(pteAddress, 8, ACCESS_READ, R.PRIV_S)) return accessFault(access);
      const pte = atomic.load<u64>(host);
      if ((pte & PTE_V) == 0 || (pte & (PTE_R | PTE_W)) == PTE_W) return pageFault(access);
      if ((pte & PTE_RESERVED) != 0 || (pte & PTE_N) != 0) return pageFault(access);
      const pbmt = pte & PTE_PBMT;
      if (pbmt != 0 && ((envcfg & R.MENVCFG_PBMTE) == 0 || pbmt == PTE_PBMT)) return pageFault(access);
      const ppn = (pte >> 10) & 0xfffffffffff;
      if ((pte & (PTE_R | PTE_X)) == 0) {
        if ((pte & (PTE_A | PTE_D | PTE_U)) != 0 || pbmt != 0) return pageFault(access);
        table = ppn << 12;
        continue;
      }
      // A leaf
      if ((pte & PTE_U) != 0) {
        if (priv == R.PRIV_S && (access == ACCESS_EXECUTE || (status & R.SUM) == 0)) return pageFault(access);
      } else if (priv == R.PRIV_U) return pageFault(access);
      const readable = (pte & PTE_R) != 0 || ((status & R.MXR) != 0 && (pte & PTE_X) != 0);
      if (access == ACCESS_EXECUTE ? (pte & PTE_X) == 0 : access == ACCESS_WRITE ? (pte & PTE_W) == 0 : !readable) {
        return pageFault(access);
      }
      const low = (<u64>1 << (level * 9)) - 1;
      if ((ppn & low) != 0) return pageFault(access); // misaligned superpage
      let updated = pte | PTE_A;
      if (access == ACCESS_WRITE) updated |= PTE_D;
      if (updated != pte) {
        if ((envcfg & R.MENVCFG_ADUE) == 0 || keepsEntries) return pageFault(access);
        if (!pmpAllows(pteAddress, 8, ACCESS_WRITE, R.PRIV_S)) return accessFault(access);
        if (atomic.cmpxchg<u64>(host, pte, updated) != pte) {
          retry = true; // another hart changed it: look again
          break;
        }
        markDirty(host);
      }
      if (level != 0) noteSuperpage(va, level);
      walkedEntry = host;
      walkedValue = updated;
      walkedLevel = level;
      walkedPa = ((ppn | ((va >> 12) & low)) << 12) | (va & 0xfff);
      walkedReadable = readable;
      // One above the leaf would mean the same, and need not be seen (privileged specification, "Sv32", G)
      walkedGlobal = (pte & PTE_G) != 0;
      // The write tag stands only where D does, so that the first store sets it
      walkedWritable = (pte & PTE_W) != 0 && (updated & PTE_D) != 0;
      return 0;
    }
    if (!retry) break; // the last level pointed on
  }
  return pageFault(access);
}
