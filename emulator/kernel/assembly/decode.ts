// Predecoding: words of guest code become slots that the interpreter dispatches on (hart_layout.ts).
import {
  CODE_INDEX_AT,
  CODE_META_AT,
  CODE_PAGE_COUNT,
  CODE_PAGES_AT,
  CODE_VERSION_AT,
  DIRTY_AT,
  hostAddress,
  hostLog,
  ROM_AT,
  TABLE_BUCKETS,
  TABLE_COMPRESSED,
  TABLE_ENTRIES,
} from './env';
import { HART } from './hart';
import * as H from './hart_layout';
import { ACCESS_EXECUTE, pmpAllows, pmpUniform } from './pmp';
import * as R from './registers';
import { fillInstruction, forgetSlots } from './tlb';
import { CAUSE_FETCH_ACCESS, trap } from './trap';
import { findTranslation } from './translation';
import { walk, walkUnlogged, walkedGlobal, walkedPa } from './walk';

// As in isa/table.ts
const HANDLER_UNDECODED: u16 = 0;
const HANDLER_PAGE_END: u16 = 1;
const HANDLER_ILLEGAL: u16 = 2;
const ENTRY_BYTES: u32 = 12;

// As in isa/row.ts FORMATS
const FORMAT_I: u32 = 1;
const FORMAT_S: u32 = 2;
const FORMAT_B: u32 = 3;
const FORMAT_U: u32 = 4;
const FORMAT_J: u32 = 5;
const FORMAT_SHIFT: u32 = 6;
const FORMAT_SHIFTW: u32 = 7;
const FORMAT_LOAD: u32 = 9;
const FORMAT_SYS: u32 = 10;
const FORMAT_F: u32 = 12;
const FORMAT_F2: u32 = 13;
const FORMAT_F4: u32 = 14;
const FORMAT_FLOAD: u32 = 15;
const FORMAT_FSTORE: u32 = 16;
const FORMAT_NONE: u32 = 17;

/** Page number of a host address, ROM first: the index of all per-page maps */
// @ts-ignore: decorator
@inline
export function pageIndex(host: u32): u32 {
  return (host - ROM_AT) >> 12;
}

/**
 * The version of a page's code. Stores set the page's dirty byte; the first hart that looks afterwards turns
 * that into a new version, so that every hart finds its own copy stale at its next fetch-TLB fill. The bit is
 * cleared before the page is read, so a store that races is seen again.
 */
export function codeVersion(index: u32): u32 {
  const dirty = DIRTY_AT + index;
  const version = CODE_VERSION_AT + (index << 2);
  if (atomic.load<u8>(dirty) & <u8>H.DIRTY_CODE_BIT) {
    if (atomic.and<u8>(dirty, <u8>~H.DIRTY_CODE_BIT) & <u8>H.DIRTY_CODE_BIT) atomic.add<u32>(version, 1);
  }
  return atomic.load<u32>(version);
}

function clearPage(slots: u32): void {
  memory.fill(slots, 0, H.CODE_PAGE_SLOTS * H.SLOT_BYTES);
  store<u16>(slots + H.CODE_PAGE_SLOTS * H.SLOT_BYTES, HANDLER_PAGE_END);
}

/** Slots of a host page, empty where its code changed or it was not there. */
function pageSlots(host: u32): u32 {
  const page = pageIndex(host);
  const version = codeVersion(page);
  const indexAt = CODE_INDEX_AT + (page << 1);
  const known = <u32>load<u16>(indexAt);
  if (known != 0) {
    const slots = CODE_PAGES_AT + (known - 1) * H.CODE_PAGE_BYTES;
    const meta = CODE_META_AT + (known - 1) * H.CODE_META_BYTES;
    if (load<u32>(meta + 4) != version) {
      R.count(H.COUNT_CODE_STALE);
      clearPage(slots);
      store<u32>(meta + 4, version);
    }
    return slots;
  }
  let next = R.get32(H.HART_CODE_NEXT);
  const meta = CODE_META_AT + next * H.CODE_META_BYTES;
  const old = load<u32>(meta);
  const slots = CODE_PAGES_AT + next * H.CODE_PAGE_BYTES;
  R.count(H.COUNT_CODE_PAGES);
  if (old != 0) {
    R.count(H.COUNT_CODE_EVICTED);
    store<u16>(CODE_INDEX_AT + (pageIndex(old) << 1), 0);
    forgetSlots(slots);
  }
  clearPage(slots);
  store<u32>(meta, host & ~0xfff);
  store<u32>(meta + 4, version);
  store<u16>(indexAt, <u16>(next + 1));
  next++;
  R.set32(H.HART_CODE_NEXT, next == CODE_PAGE_COUNT ? 0 : next);
  return slots;
}

/** Host address of a page for execution; 0 where a trap was taken, reporting `tval`. */
function executable(va: u64, size: u64, tval: u64): u32 {
  const priv = R.get32(H.HART_PRIV);
  const cause = walk(va, ACCESS_EXECUTE, priv);
  if (cause != 0) {
    trap(cause, tval);
    return 0;
  }
  const host = hostAddress(walkedPa, size);
  if (host == 0 || !pmpAllows(walkedPa, size, ACCESS_EXECUTE, priv)) {
    trap(CAUSE_FETCH_ACCESS, tval);
    return 0;
  }
  return host;
}

/** Slots of the page that HART_PC is in, entered into the fetch TLB; 0 where a trap was taken. */
export function fetchSlow(): u32 {
  const pc = R.get64(H.HART_PC);
  R.count(H.COUNT_FETCH_MISSES);
  R.set32(H.HART_FETCH_ONCE, 0);
  const host = executable(pc, 2, pc);
  if (host == 0) return 0;
  if (!pmpUniform(walkedPa)) return fetchOnce(pc, host);
  const slots = pageSlots(host);
  fillInstruction(pc, slots, walkedGlobal);
  return slots;
}

/**
 * Where PMP divides a page, each instruction is fetched by itself, so that no jump or fall inside the page goes
 * past the check. Gives the base by which HART_PC's slot is the scratch slot.
 */
function fetchOnce(pc: u64, host: u32): u32 {
  const low = <u32>load<u16>(host);
  let second: u32 = 0;
  if ((low & 3) == 3) {
    second = executable(pc + 2, 2, pc + 2);
    if (second == 0) return 0;
  }
  const scratch = HART + H.HART_SCRATCH;
  decodeWord(scratch, low, second);
  store<u16>(scratch + (second == 0 ? 1 : 2) * H.SLOT_BYTES, HANDLER_PAGE_END);
  R.set32(H.HART_FETCH_ONCE, 1);
  return scratch - ((<u32>pc & 4095) << 3);
}

/** How a decode ended: the slot is filled; the scratch slot is filled instead; a trap was taken */
const DECODED: u32 = 0;
const STRADDLES: u32 = 1;
const TRAPPED: u32 = 2;

/** Decodes the instruction at HART_PC into `slot` of the page at `slots`. */
export function decodeSlot(slot: u32, slots: u32): u32 {
  const page = (slots - CODE_PAGES_AT) / H.CODE_PAGE_BYTES;
  const offset = (slot - slots) >> 3;
  const host = load<u32>(CODE_META_AT + page * H.CODE_META_BYTES) + offset;
  const low = <u32>load<u16>(host);
  if ((low & 3) != 3 || offset != 4094) {
    decodeWord(slot, low, host + 2);
    if (R.get32(H.HART_TRANSLATING) && findTranslation(host) != 0) {
      store<u16>(slot, load<u16>(slot) | <u16>H.HANDLER_TRANSLATED);
      // Its line may be of a page that had these slots before
      store<u32>(HART + H.HART_ENTRY_CACHE + (slot & ((H.ENTRY_CACHE_ENTRIES - 1) << 4)), 0);
    }
    return DECODED;
  }
  // The second half lies in the next page, whose mapping may change on its own: decoded each time it is run
  const next = R.get64(H.HART_PC) + 2;
  const second = executable(next, 2, next);
  if (second == 0) return TRAPPED;
  const scratch = HART + H.HART_SCRATCH;
  decodeWord(scratch, low, second);
  store<u16>(scratch + 2 * H.SLOT_BYTES, HANDLER_PAGE_END);
  return STRADDLES;
}

/** Decodes an instruction by its low half and, for one of 32 bits, the host address of its high half. */
function decodeWord(slot: u32, low: u32, high: u32): void {
  R.count(H.COUNT_DECODED);
  if (R.get32(H.HART_LOG) & H.LOG_IN_ASM) {
    hostLog(H.LOG_IN_ASM, low, (low & 3) == 3 ? <u64>load<u16>(high) : 0, 0);
  }
  if ((low & 3) == 3) {
    fillSlot(slot, low | (<u32>load<u16>(high) << 16), 4, 0);
    return;
  }
  const word = load<u32>(TABLE_COMPRESSED + (low << 2));
  if (word == 0) fillIllegal(slot, low, 2);
  else fillSlot(slot, word, 2, low);
}

function fillIllegal(slot: u32, word: u32, length: u32): void {
  store<u64>(slot + H.SLOT_IMM, <u64>word);
  store<u8>(slot + H.SLOT_LENGTH, <u8>length);
  store<u16>(slot, HANDLER_ILLEGAL);
}

/** `short` is the 16-bit word where `word` is its expansion */
function fillSlot(slot: u32, word: u32, length: u32, short: u32): void {
  const bucket = TABLE_BUCKETS + ((((word >> 2) & 31) | (((word >> 12) & 7) << 5)) << 2);
  let entry = TABLE_ENTRIES + <u32>load<u16>(bucket) * ENTRY_BYTES;
  const end = entry + <u32>load<u16>(bucket + 2) * ENTRY_BYTES;
  while (entry < end && (word & load<u32>(entry)) != load<u32>(entry + 4)) entry += ENTRY_BYTES;
  if (entry >= end) {
    fillIllegal(slot, length == 2 ? short : word, length);
    return;
  }
  const handler = load<u16>(entry + 8);
  const format = <u32>load<u8>(entry + 10);
  const integerRd = load<u8>(entry + 11);
  const fp = format >= FORMAT_F && format <= FORMAT_FLOAD;
  const rd = (word >> 7) & 31;
  store<u16>(slot + H.SLOT_RD, <u16>(rd == 0 && (!fp || integerRd != 0) ? H.HART_X_DISCARD : rd << 3));
  store<u8>(slot + H.SLOT_RS1, <u8>(((word >> 15) & 31) << 3));
  store<u8>(slot + H.SLOT_RS2, <u8>(((word >> 20) & 31) << 3));
  store<u8>(slot + H.SLOT_RS3, <u8>(((word >> 27) & 31) << 3));
  store<u8>(slot + H.SLOT_LENGTH, <u8>length);
  if ((format == FORMAT_F || format == FORMAT_F2 || format == FORMAT_F4) && (load<u32>(entry) & 0x7000) == 0) {
    const rm = (word >> 12) & 7;
    if (rm == 5 || rm == 6) {
      fillIllegal(slot, word, length);
      return;
    }
    store<u32>(slot + H.SLOT_RM, rm);
    store<u32>(slot + H.SLOT_RM_FAST, rm == 0 || rm == 7 ? 1 : 0);
  } else {
    store<i64>(slot + H.SLOT_IMM, immediate(word, format));
  }
  // The handler goes last: a slot is either undecoded or whole
  store<u16>(slot, handler + (length == 2 ? 1 : 0));
}

function immediate(word: u32, format: u32): i64 {
  const signed = <i32>word;
  if (format == FORMAT_I || format == FORMAT_LOAD || format == FORMAT_FLOAD) return <i64>(signed >> 20);
  if (format == FORMAT_S || format == FORMAT_FSTORE) return <i64>(((signed >> 25) << 5) | (<i32>(word >> 7) & 31));
  if (format == FORMAT_B) {
    return <i64>(
      ((signed >> 31) << 12) | ((<i32>(word >> 7) & 1) << 11) | ((<i32>(word >> 25) & 63) << 5) | ((<i32>(word >> 8) & 15) << 1)
    );
  }
  if (format == FORMAT_U) return <i64>(signed & ~0xfff);
  if (format == FORMAT_J) {
    return <i64>(
      ((signed >> 31) << 20) | (<i32>word & 0xff000) | ((<i32>(word >> 20) & 1) << 11) | ((<i32>(word >> 21) & 1023) << 1)
    );
  }
  if (format == FORMAT_SHIFT) return <i64>((word >> 20) & 63);
  if (format == FORMAT_SHIFTW) return <i64>((word >> 20) & 31);
  if (format == FORMAT_SYS) return <i64>(<u64>word);
  if (format == FORMAT_NONE) return <i64>signed; // fence: which accesses it orders
  return 0;
}

/** The instruction word at HART_PC for mtval of an illegal instruction; 0 where it cannot be read any more. */
export function instructionAt(pc: u64): u64 {
  const priv = R.get32(H.HART_PRIV);
  if (walkUnlogged(pc, ACCESS_EXECUTE, priv) != 0) return 0;
  const host = hostAddress(walkedPa, 2);
  if (host == 0) return 0;
  const low = <u64>load<u16>(host);
  if ((low & 3) != 3) return low;
  if (walkUnlogged(pc + 2, ACCESS_EXECUTE, priv) != 0) return 0;
  const second = hostAddress(walkedPa, 2);
  return second == 0 ? 0 : low | (<u64>load<u16>(second) << 16);
}
