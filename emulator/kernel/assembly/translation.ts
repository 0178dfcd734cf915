// Where translated functions may be entered: by host address of the first instruction, and only while the pages
// that they were made of are mapped where they run and unchanged (docs/decisions/0008).
import { CALL_DEPTH, CODE_INDEX_AT, CODE_KEYS_AT, CODE_META_AT, CODE_PAGES_AT, ENTRIES_AT, hostAddress } from './env';
import { codeVersion, pageIndex } from './decode';
import { HART } from './hart';
import * as H from './hart_layout';
import { ACCESS_EXECUTE, pmpAllows, pmpUniform } from './pmp';
import * as R from './registers';
import { emptyCell, unlist } from './tlb';
import { walk, walkedGlobal, walkedPa, walkUnmarked } from './walk';

const NO_KEY: u32 = 0xffff;
/** 2^32 / golden ratio, made prime: the upper bits of a product are a hash of the other factor */
const HASH: u32 = 0x9e3779b1;

// @ts-ignore: decorator
@inline
function keyCurrent(key: u32): bool {
  const record = CODE_KEYS_AT + key * H.CODE_KEY_BYTES;
  return codeVersion(pageIndex(load<u32>(record))) == load<u32>(record + 4);
}

/** Address of the byte that says whether a translated function may begin in the page of a host address */
// @ts-ignore: decorator
@inline
function entryPage(host: u32): u32 {
  return HART + H.HART_ENTRY_PAGES + (((host >> 12) * HASH) >> (32 - H.ENTRY_PAGES_BITS));
}

/** For the translator, which fills the entry at a host address: its page is one to look in. */
export function noteEntryPage(host: u32): void {
  store<u8>(entryPage(host), 1);
}

/** The entry of a host address, or the free one where it belongs */
export function entryAt(host: u32): u32 {
  let index = ((host >> 1) * HASH) >> (32 - H.ENTRIES_BITS);
  while (true) {
    const entry = ENTRIES_AT + index * H.ENTRY_BYTES;
    const at = load<u32>(entry);
    if (at == 0 || at == host) return entry;
    index = (index + 1) & (H.ENTRIES - 1);
  }
}

/** The entry of a host address for this privilege, if its code is unchanged; else 0. */
export function findTranslation(host: u32): u32 {
  // Most code is decoded where nothing is translated, and the table of entries is in no cache then
  if (load<u8>(entryPage(host)) == 0) return 0;
  const entry = entryAt(host);
  if (load<u32>(entry + 4) == 0 || load<u32>(entry + 8) >> 16 != R.get32(H.HART_PRIV)) return 0;
  for (let i: u32 = 0; i < <u32>H.ENTRY_MAX_KEYS; i++) {
    const key = <u32>load<u16>(entry + H.ENTRY_KEYS + (i << 1));
    if (key == NO_KEY) break;
    if (!keyCurrent(key)) {
      store<u32>(entry + 4, 0); // dropped for good: the page has a new version
      return 0;
    }
  }
  return entry;
}

/** For a slot that says HANDLER_TRANSLATED: its line of the entry cache, filled; 0 where nothing is there any more. */
export function findEntry(slot: u32): u32 {
  const page = (slot - CODE_PAGES_AT) / H.CODE_PAGE_BYTES;
  const offset = (slot - (CODE_PAGES_AT + page * H.CODE_PAGE_BYTES)) >> 3;
  const host = load<u32>(CODE_META_AT + page * H.CODE_META_BYTES) + offset;
  const entry = findTranslation(host);
  if (entry == 0) {
    store<u16>(slot, load<u16>(slot) & ~(<u16>H.HANDLER_TRANSLATED));
    return 0;
  }
  const cached = HART + H.HART_ENTRY_CACHE + (slot & ((H.ENTRY_CACHE_ENTRIES - 1) << 4));
  const table = load<u32>(entry + 4);
  const number = load<u32>(entry + 8) & 0xffff;
  store<u32>(cached, slot | R.get32(H.HART_PRIV));
  store<u32>(cached + 4, table);
  store<u32>(cached + 8, CALL_DEPTH | number);
  store<u32>(cached + 12, load<u32>(entry + 12));
  const pc = R.get64(H.HART_PC);
  const jump = HART + H.HART_JUMP_CACHE + ((<u32>(pc >> 1) & (H.JUMP_CACHE_ENTRIES - 1)) << 4);
  store<u64>(jump, pc ^ R.get64(H.HART_JUMP_SALT));
  store<u32>(jump + 8, table);
  store<u32>(jump + 12, number);
  return cached;
}

/** The same code at another address, where it may not be global any more */
function relist(key: u32, global: bool): void {
  for (let at = HART + H.HART_EXEC_LIST; ; at += 2) {
    if ((<u32>load<u16>(at) & ~H.EXEC_GLOBAL) != key) continue;
    store<u16>(at, <u16>(global ? key | H.EXEC_GLOBAL : key));
    return;
  }
}

/** Whether the page at `va` is what the key's code was made of; remembers it in the key's cell until the next flush. */
export function validateCode(key: u32, va: u64): u32 {
  const record = CODE_KEYS_AT + key * H.CODE_KEY_BYTES;
  const priv = R.get32(H.HART_PRIV);
  if (load<u32>(record + 8) != priv) return 0;
  if (walk(va, ACCESS_EXECUTE, priv) != 0) return 0;
  const host = hostAddress(walkedPa, 4096);
  if (host == 0 || host != load<u32>(record) || !keyCurrent(key)) return 0;
  if (!pmpUniform(walkedPa) || !pmpAllows(walkedPa, 4096, ACCESS_EXECUTE, priv)) return 0;
  const cell = HART + H.HART_EXEC_CELLS + (key << 3);
  if (load<u64>(cell) == ~0) {
    const count = R.get32(H.HART_EXEC_COUNT);
    store<u16>(HART + H.HART_EXEC_LIST + (count << 1), <u16>(walkedGlobal ? key | H.EXEC_GLOBAL : key));
    R.set32(H.HART_EXEC_COUNT, count + 1);
  } else relist(key, walkedGlobal);
  store<u64>(cell, va);
  return 1;
}

/** fence.i: what was made of code that has changed since is found no more. What is unchanged need not be found again. */
export function fenceInstructions(): void {
  for (let i = R.get32(H.HART_ITLB_COUNT); i-- > 0; ) {
    const entry = HART + H.HART_ITLB_SETS + <u32>load<u16>(HART + H.HART_ITLB_LIST + (i << 1)) * H.ITLB_ENTRY_BYTES;
    if (load<u64>(entry) != ~0) {
      const meta = CODE_META_AT + ((load<u32>(entry + 8) - CODE_PAGES_AT) / H.CODE_PAGE_BYTES) * H.CODE_META_BYTES;
      if (codeVersion(pageIndex(load<u32>(meta))) == load<u32>(meta + 4)) continue;
      store<u64>(entry, ~0);
    }
    unlist(H.HART_ITLB_LIST, H.HART_ITLB_COUNT, i);
  }
  for (let i = R.get32(H.HART_EXEC_COUNT); i-- > 0; ) {
    if (!keyCurrent(<u32>load<u16>(HART + H.HART_EXEC_LIST + (i << 1)) & ~H.EXEC_GLOBAL)) emptyCell(i);
  }
}

/** Slots of the page at `va` for execution now, without a trap; 0 where it is not mapped or was never run by this hart. */
export function codePage(va: u64): u32 {
  const priv = R.get32(H.HART_PRIV);
  if (walkUnmarked(va, ACCESS_EXECUTE, priv) != 0) return 0;
  const host = hostAddress(walkedPa, 4096);
  if (host == 0 || !pmpUniform(walkedPa) || !pmpAllows(walkedPa, 4096, ACCESS_EXECUTE, priv)) return 0;
  const page = pageIndex(host);
  const known = <u32>load<u16>(CODE_INDEX_AT + (page << 1));
  if (known == 0) return 0;
  if (load<u32>(CODE_META_AT + (known - 1) * H.CODE_META_BYTES + 4) != codeVersion(page)) return 0;
  return CODE_PAGES_AT + (known - 1) * H.CODE_PAGE_BYTES;
}
