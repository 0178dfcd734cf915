// Physical memory protection: privileged specification 3.7. Sixteen entries.
import { HART } from './hart';
import * as H from './hart_layout';
import { flushAll } from './tlb';
import * as R from './registers';

export const ACCESS_READ: u32 = 1;
export const ACCESS_WRITE: u32 = 2;
export const ACCESS_EXECUTE: u32 = 4;
const LOCK: u32 = 0x80;
const ENTRIES: u32 = 16;

// @ts-ignore: decorator
@inline
function config(index: u32): u32 {
  return load<u8>(HART + H.HART_PMPCFG + index);
}
// @ts-ignore: decorator
@inline
function address(index: u32): u64 {
  return load<u64>(HART + H.HART_PMPADDR + (index << 3));
}

/** Works out the ranges again after a write; an entry that matches nothing has first > last. */
export function updatePmp(): void {
  let count: u32 = 0;
  for (let i: u32 = 0; i < ENTRIES; i++) {
    const mode = (config(i) >> 3) & 3;
    let first: u64 = 1;
    let last: u64 = 0;
    if (mode == 1) {
      // TOR
      const from = i == 0 ? 0 : address(i - 1) << 2;
      const to = address(i) << 2;
      if (from < to) {
        first = from;
        last = to - 1;
      }
    } else if (mode == 2) {
      first = address(i) << 2;
      last = first + 3;
    } else if (mode == 3) {
      // NAPOT: the number of low ones gives the size
      const ones = ctz(~address(i));
      if (ones >= 54) {
        first = 0;
        last = ~0;
      } else {
        const size: u64 = (<u64>8) << ones;
        first = (address(i) << 2) & ~(size - 1);
        last = first + size - 1;
      }
    }
    store<u64>(HART + H.HART_PMP_FIRST + (i << 3), first);
    store<u64>(HART + H.HART_PMP_LAST + (i << 3), last);
    if (mode != 0) count = i + 1;
  }
  R.set32(H.HART_PMP_COUNT, count);
  flushAll();
}

/** True where `priv` may do `access` to all of [pa, pa + size). */
export function pmpAllows(pa: u64, size: u64, access: u32, priv: u32): bool {
  const count = R.get32(H.HART_PMP_COUNT);
  // As QEMU: with no entry in use nothing is protected, so that programs without a PMP set-up run
  if (count == 0) return true;
  const end = pa + size - 1;
  for (let i: u32 = 0; i < count; i++) {
    const first = load<u64>(HART + H.HART_PMP_FIRST + (i << 3));
    const last = load<u64>(HART + H.HART_PMP_LAST + (i << 3));
    if (first > last || end < first || pa > last) continue;
    // The lowest-numbered entry that matches any byte decides, and must match all
    if (pa < first || end > last) return false;
    const cfg = config(i);
    if (priv == R.PRIV_M && (cfg & LOCK) == 0) return true;
    return (cfg & access) == access;
  }
  return priv == R.PRIV_M;
}

/** True where the whole page has one answer, so that a TLB may remember it. */
export function pmpUniform(pa: u64): bool {
  const count = R.get32(H.HART_PMP_COUNT);
  const page = pa & ~0xfff;
  const end = page + 0xfff;
  for (let i: u32 = 0; i < count; i++) {
    const first = load<u64>(HART + H.HART_PMP_FIRST + (i << 3));
    const last = load<u64>(HART + H.HART_PMP_LAST + (i << 3));
    if (first > last || end < first || page > last) continue;
    return page >= first && end <= last;
  }
  return true;
}

export function readPmpConfig(register: u32): u64 {
  return load<u64>(HART + H.HART_PMPCFG + register * 4);
}

/** pmpcfg0 or pmpcfg2: eight entries each on RV64; locked ones keep their value. */
export function writePmpConfig(register: u32, value: u64): void {
  for (let i: u32 = 0; i < 8; i++) {
    const index = register * 4 + i;
    const old = config(index);
    if (old & LOCK) continue;
    let next = <u32>(value >> (i << 3)) & 0x9f;
    // W without R is reserved
    if ((next & 3) == 2) next &= ~2;
    store<u8>(HART + H.HART_PMPCFG + index, <u8>next);
  }
  updatePmp();
}

export function readPmpAddress(index: u32): u64 {
  return address(index);
}

export function writePmpAddress(index: u32, value: u64): void {
  if (config(index) & LOCK) return;
  // A locked TOR entry above uses this address as its lower bound
  if (index + 1 < ENTRIES) {
    const above = config(index + 1);
    if ((above & LOCK) != 0 && ((above >> 3) & 3) == 1) return;
  }
  store<u64>(HART + H.HART_PMPADDR + (index << 3), value & 0x3fffffffffffff);
  updatePmp();
}
