// Where everything of an image lies in guest physical memory, and what the records of the runs hold.
//
//   0x80000000  runtime: driver, trap handlers, their state, descriptors of the legs, records
//   0x80100000  page tables
//   0x80200000  window: pages that are mapped in many ways at WINDOW, and a pristine copy
//   0x80400000  programs, SLOT_BYTES each: code in the first half, data in the second
//   0x81400000  far code of the programs, three pieces each, 512 KiB apart; the last page of the third has jump tables

export const PAGE = 4096;
export const RAM_BASE = 0x8000_0000;
/** QEMU puts its device tree into the last 2 MiB */
export const RAM_BYTES = 34 << 20;

/** Counters and logs: compared. Trap frames and what depends on the clock: not */
export const STATE = RAM_BASE + 0x1_0000;
export const SCRATCH = RAM_BASE + 0x1_1000;
/** The first traps of the leg at hand: cause, epc, tval each. The images' end is the last leg's */
export const TRAP_LOG = RAM_BASE + 0x1_2000;
export const TRAP_LOG_ENTRIES = 1024;
export const TRAP_LOG_ENTRY_BYTES = 32;
export const DESCRIPTORS = RAM_BASE + 0x2_0000;
export const RECORDS = RAM_BASE + 0x4_0000;
export const TABLES = RAM_BASE + 0x10_0000;
export const TABLES_BYTES = 0x10_0000;
export const WINDOW_PAGES = RAM_BASE + 0x20_0000;
export const WINDOW_PRISTINE = RAM_BASE + 0x24_0000;
export const PROGRAMS = RAM_BASE + 0x40_0000;
export const SLOT_BYTES = 0x4_0000;
export const DATA_OFFSET = 0x2_0000;
export const SLOTS = 64;
export const SLOT_PAGES = SLOT_BYTES / PAGE;

/** Code that is far from the rest of its program: no jal reaches it, and from one piece to the next it does */
export const FAR_CODE = PROGRAMS + SLOTS * SLOT_BYTES;
export const FAR_PIECES = 3;
export const FAR_PIECE_BYTES = 0x1_0000;
const FAR_GROUP = 8;
/** Of the last piece: where the jump tables are, alone in their page */
const TABLES_OFFSET = FAR_PIECE_BYTES - PAGE;

/** Virtual address of the window: Sv39, 64 GiB, where bare machines have nothing */
export const WINDOW = 0x10_0000_0000;
/** An address where no machine has memory or devices */
export const ABSENT = 0xc000_0000;

/** Words at STATE, by offset */
export const STATE_WORDS = {
  leg: 0, legs: 8, finishPc: 16, trapCount: 24, trapHash: 32, aborted: 40, record: 48, trapLimit: 56,
  slot: 64, entriesS: 72, entriesU: 80, moves: 88,
} as const; // biome-ignore format: a table
/** Words at SCRATCH */
export const SCRATCH_WORDS = { frameM: 0, frameS: 256, interrupts: 512, interval: 520 } as const;

/** A leg is one run of one program in one mode. Words of its descriptor */
export const LEG = {
  entry: 0, finishPc: 8, satp: 16, mstatus: 24, medeleg: 32, windowA: 40, windowB: 48, trapLimit: 56,
  slot: 64, entriesS: 72, entriesU: 80, moves: 88,
} as const; // biome-ignore format: a table
export const LEG_BYTES = 128;
export const MAX_LEGS = 256;

/** A record: x0…x31, f0…f31, then these */
export const RECORD_BYTES = 1024;
export const RECORD = {
  x: 0, f: 256, fcsr: 512, trapCount: 520, trapHash: 528, windowHash: 536, aborted: 544, satp: 552, done: 560,
} as const; // biome-ignore format: a table

/** Pages of the window, by index, and which physical page stands behind each */
export const DATA_PAGES = 4;
/** Physical pages behind the code pages of the two address spaces, and the one that both share */
export const CODE_PAGES = { a: DATA_PAGES, b: DATA_PAGES + 1, shared: DATA_PAGES + 2 } as const;
/** First of the two virtual code pages: 16 differs between the spaces, 17 is shared */
export const CODE_PAGE_INDEX = 16;
/** The page that the handler maps on demand */
export const DEMAND_PAGE = 4;
/** Pages whose entries change while programs run */
export const MOVING_PAGE = 20;
export const MOVING_PAGES = 8;
/** Of an entry: the physical page's lowest bit, by which two of the window's pages change places */
export const PTE_OTHER_PAGE = 0x400;
export const WINDOW_ENTRIES = 32;

/** Of a program's data: the stack grows down from here; then a buffer for each setjmp */
export const JUMP_BUFFERS = 0x1_f000;
export const JUMP_BUFFER_BYTES = 128;
export const JUMP_SLOTS = 8;
/** At sp of every function: what it may load and store there */
export const LOCALS_BYTES = 64;

export const slotBase = (slot: number): number => PROGRAMS + slot * SLOT_BYTES;
/** @param piece from 0 */
export const farBase = (slot: number, piece: number): number => {
  const group = Math.floor(slot / FAR_GROUP) * FAR_PIECES + piece;
  return FAR_CODE + (group * FAR_GROUP + (slot % FAR_GROUP)) * FAR_PIECE_BYTES;
};
export const jumpTablesAt = (slot: number): number => farBase(slot, FAR_PIECES - 1) + TABLES_OFFSET;
export const recordAt = (leg: number): number => RECORDS + leg * RECORD_BYTES;
