// Loads and stores that the inlined TLB check does not serve: misses, page crossings, MMIO, atomics.
import { hostAddress, isRam, mmioRead, mmioWrite } from './env';
import * as H from './hart_layout';
import { ACCESS_READ, ACCESS_WRITE, pmpAllows, pmpUniform } from './pmp';
import * as R from './registers';
import { dataPrivilege, fillData } from './tlb';
import { CAUSE_LOAD_MISALIGNED, CAUSE_STORE_MISALIGNED, trap } from './trap';
import { widenWindow } from './window';
import { accessFault, markDirty, pageFault, walk, walkUnlogged, walkedGlobal, walkedPa, walkedReadable, walkedWritable } from './walk';

/** Physical address where `translate` gave 1 */
let mmioPa: u64 = 0;

/**
 * Translates [va, va + size), which lies in one page. Gives its host address; 1 for MMIO (address in mmioPa);
 * 0 where a trap was taken. `tval` is what a trap reports.
 */
function translate(va: u64, size: u64, access: u32, tval: u64): u32 {
  return translateAs(va, size, access, access, tval);
}

/** The same, where faults are reported as those of another access. */
function translateAs(va: u64, size: u64, access: u32, reported: u32, tval: u64): u32 {
  R.count(H.COUNT_DATA_MISSES);
  const priv = dataPrivilege();
  const cause = walk(va, access, priv);
  if (cause != 0) {
    trap(cause == pageFault(access) ? pageFault(reported) : accessFault(reported), tval);
    return 0;
  }
  const pa = walkedPa;
  if (!pmpAllows(pa, size, access, priv)) {
    trap(accessFault(reported), tval);
    return 0;
  }
  const host = hostAddress(pa, size);
  if (host == 0) {
    mmioPa = pa;
    return 1;
  }
  const ram = isRam(host);
  if (!ram && access == ACCESS_WRITE) {
    trap(accessFault(access), tval);
    return 0;
  }
  if (pmpUniform(pa)) {
    const page = pa & ~0xfff;
    const readable = walkedReadable && (access == ACCESS_READ || pmpAllows(page, 4096, ACCESS_READ, priv));
    const writable = ram && walkedWritable && (access == ACCESS_WRITE || pmpAllows(page, 4096, ACCESS_WRITE, priv));
    fillData(va, host, readable, writable, walkedGlobal);
    if (readable && writable) widenWindow(va, priv);
  }
  return host;
}

// @ts-ignore: decorator
@inline
function extend(raw: u64, kind: u32): u64 {
  if (kind == 0) return <u64>(<i64>(<i8>raw));
  if (kind == 2) return <u64>(<i64>(<i16>raw));
  if (kind == 4) return <u64>(<i64>(<i32>raw));
  return raw;
}

function loadHost(host: u32, size: u32): u64 {
  if (size == 8) return load<u64>(host);
  if (size == 4) return load<u32>(host);
  if (size == 2) return load<u16>(host);
  return load<u8>(host);
}

function storeHost(host: u32, size: u32, value: u64): void {
  if (size == 8) store<u64>(host, value);
  else if (size == 4) store<u32>(host, <u32>value);
  else if (size == 2) store<u16>(host, <u16>value);
  else store<u8>(host, <u8>value);
  markDirty(host);
}

/** `kind`: 0 b, 1 bu, 2 h, 3 hu, 4 w, 5 wu, 6 d. HART_PC is the instruction's. */
export function loadSlow(va: u64, kind: u32): u64 {
  const size: u32 = 1 << (kind >> 1);
  if ((va & 0xfff) + size > 4096) return loadCrossing(va, size, kind);
  const host = translate(va, size, ACCESS_READ, va);
  if (host == 0) return 0;
  if (host != 1) return extend(loadHost(host, size), kind);
  if (mmioPa & (size - 1)) {
    trap(CAUSE_LOAD_MISALIGNED, va);
    return 0;
  }
  const pa = mmioPa;
  R.count(H.COUNT_MMIO_READS);
  R.set32(H.HART_MMIO_FAULT, 0);
  let raw = <u64>mmioRead(<u32>pa, <u32>(pa >> 32), min<u32>(size, 4));
  if (size == 8) raw |= <u64>mmioRead(<u32>pa + 4, <u32>(pa >> 32), 4) << 32;
  if (R.get32(H.HART_MMIO_FAULT)) {
    trap(accessFault(ACCESS_READ), va);
    return 0;
  }
  return extend(raw, kind);
}

function loadCrossing(va: u64, size: u32, kind: u32): u64 {
  const first: u32 = 4096 - <u32>(va & 0xfff);
  const low = translate(va, first, ACCESS_READ, va);
  if (low == 0) return 0;
  const high = translate(va + first, size - first, ACCESS_READ, va + first);
  if (high == 0) return 0;
  if (low == 1 || high == 1) {
    trap(CAUSE_LOAD_MISALIGNED, va);
    return 0;
  }
  let raw: u64 = 0;
  for (let i: u32 = 0; i < size; i++) {
    const byte = <u64>load<u8>(i < first ? low + i : high + i - first);
    raw |= byte << (i << 3);
  }
  return extend(raw, kind);
}

export function storeSlow(va: u64, size: u32, value: u64): void {
  if ((va & 0xfff) + size > 4096) {
    storeCrossing(va, size, value);
    return;
  }
  const host = translate(va, size, ACCESS_WRITE, va);
  if (host == 0) return;
  if (host != 1) {
    storeHost(host, size, value);
    return;
  }
  if (mmioPa & (size - 1)) {
    trap(CAUSE_STORE_MISALIGNED, va);
    return;
  }
  const pa = mmioPa;
  R.count(H.COUNT_MMIO_WRITES);
  R.set32(H.HART_MMIO_FAULT, 0);
  mmioWrite(<u32>pa, <u32>(pa >> 32), min<u32>(size, 4), <u32>value);
  if (size == 8) mmioWrite(<u32>pa + 4, <u32>(pa >> 32), 4, <u32>(value >> 32));
  if (R.get32(H.HART_MMIO_FAULT)) trap(accessFault(ACCESS_WRITE), va);
}

/** Both pages are translated before either is stored to, so that a fault leaves memory as it was. */
function storeCrossing(va: u64, size: u32, value: u64): void {
  const first: u32 = 4096 - <u32>(va & 0xfff);
  const low = translate(va, first, ACCESS_WRITE, va);
  if (low == 0) return;
  const high = translate(va + first, size - first, ACCESS_WRITE, va + first);
  if (high == 0) return;
  if (low == 1 || high == 1) {
    trap(CAUSE_STORE_MISALIGNED, va);
    return;
  }
  for (let i: u32 = 0; i < size; i++) {
    store<u8>(i < first ? low + i : high + i - first, <u8>(value >> (i << 3)));
  }
  markDirty(low);
  markDirty(high);
}

/**
 * Host address of an aligned word for LR (`write` 0) or SC and AMO (`write` 1); 0 where a trap was taken.
 * Atomics on MMIO are access faults: main memory alone has AMOArithmetic here (privileged specification 3.6.3).
 */
export function atomicAddress(va: u64, size: u32, write: u32): u32 {
  if (va & (size - 1)) {
    trap(write ? CAUSE_STORE_MISALIGNED : CAUSE_LOAD_MISALIGNED, va);
    return 0;
  }
  const access: u32 = write ? ACCESS_WRITE : ACCESS_READ;
  const host = translate(va, size, access, va);
  if (host == 1) {
    trap(accessFault(access), va);
    return 0;
  }
  if (host != 0 && write) markDirty(host);
  return host;
}

/** For cache-block operations: the block must be reachable by `access`; 0 where a trap, a store's, was taken ("CMO" 2.5). */
export function blockAddress(va: u64, access: u32): u32 {
  const host = translateAs(va & ~63, 64, access, ACCESS_WRITE, va);
  if (host == 1) {
    trap(accessFault(ACCESS_WRITE), va);
    return 0;
  }
  return host;
}

export function dirtied(host: u32): void {
  markDirty(host);
}

/** Host address of `size` readable bytes in one page, without a trap and without entering a translation; 0 where not. */
export function peekAddress(va: u64, size: u32): u32 {
  const priv = dataPrivilege();
  if ((va & 0xfff) + size > 4096 || walkUnlogged(va, ACCESS_READ, priv) != 0) return 0;
  if (!pmpAllows(walkedPa, size, ACCESS_READ, priv)) return 0;
  return hostAddress(walkedPa, size);
}
