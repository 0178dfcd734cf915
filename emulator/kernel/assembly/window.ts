// Windows: for each data TLB set one long range of addresses that lies in RAM as it lies in the guest, readable and
// writable. Operating systems map much of memory in long runs; inside one, translated code needs no look-up
// (docs/decisions/0014).
import { HART } from './hart';
import * as H from './hart_layout';
import { RAM_AT, RAM_BASE, RAM_BYTES } from './env';
import { ACCESS_READ, ACCESS_WRITE, pmpAllows } from './pmp';
import * as R from './registers';
import { dataSet } from './tlb';
import { walkedEntry, walkedGlobal, walkedLevel, walkedPa, walkedValue } from './walk';

const ENTRIES_OF_TABLE: u32 = 512;

// @ts-ignore: decorator
@inline
function windowOf(set: u32): u32 {
  return HART + H.HART_WINDOWS + set * H.WINDOW_BYTES;
}

/** Makes a set's window the one that translated code looks at. */
export function useWindow(set: u32): void {
  const window = windowOf(set);
  const bytes = load<u64>(window + 8);
  store<u64>(HART + H.HART_WINDOW, load<u64>(window));
  store<u64>(HART + H.HART_WINDOW_REACH, bytes == 0 ? 0 : bytes - (H.WINDOW_SPAN - 1));
  store<u32>(HART + H.HART_WINDOW_HOST, load<u32>(window + 16));
}

/** Forgets a set's window where the address lies in it. */
export function closeWindow(set: u32, va: u64): void {
  const window = windowOf(set);
  if (va - load<u64>(window) < load<u64>(window + 8)) store<u64>(window + 8, 0);
}

/** Forgets the windows that are of one address space, in part or as a whole. */
export function closeSpaceWindows(): void {
  for (let set: u32 = 0; set < 4; set++) {
    const window = windowOf(set);
    if (load<u32>(window + 20) == 0) store<u64>(window + 8, 0);
  }
  useWindow(dataSet());
}

export function closeWindows(): void {
  for (let set: u32 = 0; set < 4; set++) store<u64>(windowOf(set) + 8, 0);
  store<u64>(HART + H.HART_WINDOW_REACH, 0);
}

/**
 * The page of `va` was translated, to RAM that may be read and written: where the entries around its own go on as it does
 * (with the same rights, accessed and dirty as it is), they and what the window has already are one, or the longer stays.
 */
export function widenWindow(va: u64, priv: u32): void {
  const set = dataSet();
  const window = windowOf(set);
  const known = load<u64>(window);
  const knownBytes = load<u64>(window + 8);
  if (va - known < knownBytes) return;
  let from: u64 = RAM_BASE;
  let pa: u64 = RAM_BASE;
  let bytes: u64 = RAM_BYTES;
  if (walkedEntry != 0) {
    const shift = 12 + walkedLevel * 9;
    const size: u64 = (<u64>1) << shift;
    const step: u64 = size >> 2;
    // As it was when it was met: another hart may have changed it since
    const entry = walkedValue;
    const index = (walkedEntry >> 3) & (ENTRIES_OF_TABLE - 1);
    // A run lies within one table: where all of that is shorter than what is known and cannot go on with it, no look
    const most = size * ENTRIES_OF_TABLE;
    const isNear = va + most >= known && va <= known + knownBytes + most;
    const isLike = load<u32>(window + 16) - <u32>known == RAM_AT + <u32>(walkedPa - RAM_BASE) - <u32>va;
    if (most <= knownBytes && !(isNear && isLike)) return;
    from = va & ~(size - 1);
    pa = walkedPa & ~(size - 1);
    // An entry is forgotten as a whole, so that all of it must be in the window
    if (pa < RAM_BASE || pa + size > RAM_BASE + <u64>RAM_BYTES) return;
    const table = (RAM_BASE + <u64>(walkedEntry - RAM_AT)) & ~0xfff;
    if (!pmpAllows(table, 4096, ACCESS_READ, R.PRIV_S)) return;
    // In the root, addresses behind entry 255 do not follow those before it
    const half: u32 = walkedLevel >= 2 ? ENTRIES_OF_TABLE / 2 : ENTRIES_OF_TABLE;
    const mostBefore = <u32>min<u64>(index % half, (pa - RAM_BASE) >> shift);
    const mostAfter = <u32>min<u64>(half - 1 - (index % half), ((RAM_BASE + <u64>RAM_BYTES - pa) >> shift) - 1);
    let before: u32 = 0;
    while (before < mostBefore && load<u64>(walkedEntry - ((before + 1) << 3)) == entry - <u64>(before + 1) * step) before++;
    let after: u32 = 0;
    while (after < mostAfter && load<u64>(walkedEntry + ((after + 1) << 3)) == entry + <u64>(after + 1) * step) after++;
    from -= <u64>before * size;
    pa -= <u64>before * size;
    bytes = <u64>(before + 1 + after) * size;
  }
  if (!pmpAllows(pa, bytes, ACCESS_READ | ACCESS_WRITE, priv)) return;
  const distance = RAM_AT + <u32>(pa - RAM_BASE) - <u32>from;
  // Where nothing is translated, all address spaces are alike
  let global = walkedEntry == 0 || walkedGlobal;
  const isSame = load<u32>(window + 16) - <u32>known == distance;
  if (knownBytes != 0 && isSame && from <= known + knownBytes && known <= from + bytes) {
    const end = max<u64>(from + bytes, known + knownBytes);
    from = min<u64>(from, known);
    bytes = end - from;
    global = global && load<u32>(window + 20) != 0;
  } else if (bytes <= knownBytes) return;
  store<u64>(window, from);
  store<u64>(window + 8, bytes);
  store<u32>(window + 16, distance + <u32>from);
  store<u32>(window + 20, global ? 1 : 0);
  useWindow(set);
}
