// Software TLBs: data (four sets, by privilege and SUM) and instruction (by privilege).
import { HART } from './hart';
import * as H from './hart_layout';
import * as R from './registers';
import { closeSpaceWindows, closeWindow, closeWindows, useWindow } from './window';

/** Points HART_DTLB and HART_ITLB at the sets of the current mode. */
export function updateModes(): void {
  const priv = R.get32(H.HART_PRIV);
  R.set32(H.HART_DTLB, HART + H.HART_DTLB_SETS + dataSet() * H.DTLB_SET_BYTES);
  useWindow(dataSet());
  R.set32(H.HART_ITLB, HART + H.HART_ITLB_SETS + priv * H.ITLB_SET_BYTES);
  R.set64(H.HART_JUMP_SALT, <u64>priv << 61);
}

/** Privilege of loads and stores: MPRV makes M-mode borrow MPP's. */
export function dataPrivilege(): u32 {
  const priv = R.get32(H.HART_PRIV);
  const status = R.get64(H.HART_MSTATUS);
  return priv == R.PRIV_M && (status & R.MPRV) != 0 ? <u32>((status & R.MPP) >> 11) : priv;
}

/** 0 U, 1 S, 2 S with SUM, 3 M */
export function dataSet(): u32 {
  const priv = dataPrivilege();
  return priv == R.PRIV_S && (R.get64(H.HART_MSTATUS) & R.SUM) != 0 ? 2 : priv;
}

/**
 * Takes a place out of a list of u16, of which both are HART_ offsets; the last one takes the place. Who goes through the
 * list from its end misses none.
 */
// @ts-ignore: decorator
@inline
export function unlist(list: u32, countAt: u32, place: u32): void {
  const last = R.get32(countAt) - 1;
  store<u16>(HART + list + (place << 1), load<u16>(HART + list + (last << 1)));
  R.set32(countAt, last);
}

/** Empties the execution cell that stands at a place of the list of those that are set. */
export function emptyCell(place: u32): void {
  const key = <u32>load<u16>(HART + H.HART_EXEC_LIST + (place << 1)) & ~H.EXEC_GLOBAL;
  store<u64>(HART + H.HART_EXEC_CELLS + (key << 3), ~0);
  unlist(H.HART_EXEC_LIST, H.HART_EXEC_COUNT, place);
}

export function flushInstructions(): void {
  memory.fill(HART + H.HART_ITLB_SETS, 0xff, 4 * H.ITLB_SET_BYTES);
  R.set32(H.HART_ITLB_COUNT, 0);
  const count = R.get32(H.HART_EXEC_COUNT);
  for (let i: u32 = 0; i < count; i++) {
    const key = <u32>load<u16>(HART + H.HART_EXEC_LIST + (i << 1)) & ~H.EXEC_GLOBAL;
    store<u64>(HART + H.HART_EXEC_CELLS + (key << 3), ~0);
  }
  R.set32(H.HART_EXEC_COUNT, 0);
}

/** A predecoded page is given up: no fetch may find its slots. What is translated of it has no slots, and stays. */
export function forgetSlots(slots: u32): void {
  const end = HART + H.HART_ITLB_SETS + 4 * H.ITLB_SET_BYTES;
  for (let entry = HART + H.HART_ITLB_SETS; entry < end; entry += H.ITLB_ENTRY_BYTES) {
    if (load<u32>(entry + 8) == slots) store<u64>(entry, ~0);
  }
}

// @ts-ignore: decorator
@inline
function superpageBit(va: u64, level: u32): u32 {
  return (<u32>(va >> (12 + level * 9)) * 0x9e3779b1 + level * 0x85ebca6b) >> 21;
}

/** A translation is taken of a leaf above the last level: a fence for one of its addresses means all of it. */
export function noteSuperpage(va: u64, level: u32): void {
  const bit = superpageBit(va, level);
  const at = HART + H.HART_SUPERPAGES + (bit >> 3);
  store<u8>(at, load<u8>(at) | <u8>((<u32>1) << (bit & 7)));
}

/** Forgets the translations of the leaf at an address: sfence.vma with rs1. All of them where it may be a superpage. */
export function flushPage(va: u64): void {
  for (let level: u32 = 1; level < 5; level++) {
    const bit = superpageBit(va, level);
    if ((<u32>load<u8>(HART + H.HART_SUPERPAGES + (bit >> 3)) >> (bit & 7)) & 1) {
      flushAll();
      return;
    }
  }
  R.count(H.COUNT_PAGE_FLUSHES);
  const page = va & ~0xfff;
  const data = HART + H.HART_DTLB_SETS + (<u32>(va >> 12) & (H.DTLB_ENTRIES - 1)) * H.DTLB_ENTRY_BYTES;
  const code = HART + H.HART_ITLB_SETS + (<u32>(va >> 12) & (H.ITLB_ENTRIES - 1)) * H.ITLB_ENTRY_BYTES;
  for (let set: u32 = 0; set < 4; set++) {
    const entry = data + set * H.DTLB_SET_BYTES;
    if (load<u64>(entry) == page || load<u64>(entry + 8) == page) {
      store<u64>(entry, ~0);
      store<u64>(entry + 8, ~0);
    }
    const fetch = code + set * H.ITLB_SET_BYTES;
    if (load<u64>(fetch) == page) store<u64>(fetch, ~0);
    closeWindow(set, page);
  }
  useWindow(dataSet());
  for (let i = R.get32(H.HART_EXEC_COUNT); i-- > 0; ) {
    const key = <u32>load<u16>(HART + H.HART_EXEC_LIST + (i << 1)) & ~H.EXEC_GLOBAL;
    if ((load<u64>(HART + H.HART_EXEC_CELLS + (key << 3)) & ~0xfff) == page) emptyCell(i);
  }
}

/** Forgets all translations: sfence.vma, satp, PMP. Sets that are empty already are left alone. */
export function flushAll(): void {
  R.count(H.COUNT_TLB_FLUSHES);
  memory.fill(HART + H.HART_SUPERPAGES, 0, H.SUPERPAGE_BITS / 8);
  const used = R.get32(H.HART_TLB_USED);
  for (let set: u32 = 0; set < 4; set++) {
    if (used & (1 << set)) memory.fill(HART + H.HART_DTLB_SETS + set * H.DTLB_SET_BYTES, 0xff, H.DTLB_SET_BYTES);
  }
  R.set32(H.HART_TLB_USED, 0);
  closeWindows();
  flushInstructions();
}

/**
 * Forgets what the current address space maps for itself; what is global stays, whichever space follows. All that is
 * not global is of one space, because whoever leaves a space comes here or to flushAll.
 */
export function flushSpace(): void {
  R.count(H.COUNT_SPACE_FLUSHES);
  closeSpaceWindows();
  const used = R.get32(H.HART_TLB_USED);
  for (let set: u32 = 0; set < 4; set++) {
    if ((used & (1 << set)) == 0) continue;
    const end = HART + H.HART_DTLB_SETS + (set + 1) * H.DTLB_SET_BYTES;
    for (let entry = end - H.DTLB_SET_BYTES; entry < end; entry += H.DTLB_ENTRY_BYTES) {
      if (load<u32>(entry + H.DTLB_GLOBAL)) continue;
      store<u64>(entry, ~0);
      store<u64>(entry + 8, ~0);
    }
  }
  const end = HART + H.HART_ITLB_SETS + 4 * H.ITLB_SET_BYTES;
  for (let entry = HART + H.HART_ITLB_SETS; entry < end; entry += H.ITLB_ENTRY_BYTES) {
    if (load<u32>(entry + H.ITLB_GLOBAL) == 0) store<u64>(entry, ~0);
  }
  for (let i = R.get32(H.HART_EXEC_COUNT); i-- > 0; ) {
    if ((<u32>load<u16>(HART + H.HART_EXEC_LIST + (i << 1)) & H.EXEC_GLOBAL) == 0) emptyCell(i);
  }
}

/** Enters a translation of a whole page into the current data set. A tag that must not match is all ones. */
export function fillData(va: u64, host: u32, readable: bool, writable: bool, global: bool): void {
  const page = va & ~0xfff;
  const set = dataSet();
  const entry =
    HART + H.HART_DTLB_SETS + set * H.DTLB_SET_BYTES + (<u32>(va >> 12) & (H.DTLB_ENTRIES - 1)) * H.DTLB_ENTRY_BYTES;
  store<u64>(entry, readable ? page : ~0);
  store<u64>(entry + 8, writable ? page : ~0);
  store<u32>(entry + 16, (host & ~0xfff) - <u32>page);
  store<u32>(entry + H.DTLB_GLOBAL, global ? 1 : 0);
  R.set32(H.HART_TLB_USED, R.get32(H.HART_TLB_USED) | (1 << set));
}

/** An entry of the instruction TLB that was empty is set: fence.i has to look at it. */
function listInstruction(entry: u32): void {
  const first = HART + H.HART_ITLB_SETS;
  let count = R.get32(H.HART_ITLB_COUNT);
  if (count == H.ITLB_LIST_LENGTH) {
    // Fences of single pages have left some that are empty, and some twice: half of the list is enough for all entries
    count = 0;
    for (let i: u32 = 0; i < 4 * H.ITLB_ENTRIES; i++) {
      if (load<u64>(first + i * H.ITLB_ENTRY_BYTES) == ~0) continue;
      store<u16>(HART + H.HART_ITLB_LIST + (count << 1), <u16>i);
      count++;
    }
  }
  store<u16>(HART + H.HART_ITLB_LIST + (count << 1), <u16>((entry - first) / H.ITLB_ENTRY_BYTES));
  R.set32(H.HART_ITLB_COUNT, count + 1);
}

export function fillInstruction(va: u64, slots: u32, global: bool): void {
  const entry = R.get32(H.HART_ITLB) + (<u32>(va >> 12) & (H.ITLB_ENTRIES - 1)) * H.ITLB_ENTRY_BYTES;
  if (load<u64>(entry) == ~0) listInstruction(entry);
  store<u64>(entry, va & ~0xfff);
  store<u32>(entry + 8, slots);
  store<u32>(entry + H.ITLB_GLOBAL, global ? 1 : 0);
}
