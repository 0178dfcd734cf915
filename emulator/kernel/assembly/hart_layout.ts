// Where a hart keeps what, as byte offsets from its HART base in the shared memory.
// Read by AssemblyScript (the kernel) and by TypeScript (interpreter generator, state, tests): plain constants only.

/** x0..x31, 8 bytes each; x0 is never written */
export const HART_X = 0x000;
/** Where writes to x0 go */
export const HART_X_DISCARD = 0x100;
/** f0..f31, 8 bytes each, singles NaN-boxed */
export const HART_F = 0x108;
/** u32: accrued exceptions NX=1 UF=2 OF=4 DZ=8 NV=16 */
export const HART_FFLAGS = 0x208;
/** u32: dynamic rounding mode 0..7 */
export const HART_FRM = 0x20c;
/** u64: where to go on; in slow paths the instruction's own address */
export const HART_PC = 0x210;
/** u32: 0 U, 1 S, 3 M */
export const HART_PRIV = 0x218;
/** u32: mstatus.FS, 0 Off 1 Initial 2 Clean 3 Dirty */
export const HART_FS = 0x21c;
/** u32: 1 where native arithmetic gives exact flags: FS dirty, frm RNE, NX accrued already */
export const HART_FP_FAST = 0x220;
/** u32: a slow path has taken a trap; HART_PC is the handler */
export const HART_TRAPPED = 0x224;
/** u32: address of the data TLB of the current mode; of the instruction TLB */
export const HART_DTLB = 0x228;
export const HART_ITLB = 0x22c;
/** u64: instructions retired when the fuel of this run is used up */
export const HART_INSTRET_END = 0x230;
/** u32: fuel left, stored before calls that may read minstret or the time: system, loadSlow, storeSlow */
export const HART_FUEL = 0x238;
/** u32: bit n: TLB set n has entries (0 U, 1 S, 2 S with SUM, 3 M) */
export const HART_TLB_USED = 0x23c;
/** u64: mstatus without FS and SD */
export const HART_MSTATUS = 0x240;
export const HART_MIE = 0x248;
export const HART_MEDELEG = 0x250;
export const HART_MIDELEG = 0x258;
export const HART_MTVEC = 0x260;
export const HART_MSCRATCH = 0x268;
export const HART_MEPC = 0x270;
export const HART_MCAUSE = 0x278;
export const HART_MTVAL = 0x280;
export const HART_STVEC = 0x288;
export const HART_SSCRATCH = 0x290;
export const HART_SEPC = 0x298;
export const HART_SCAUSE = 0x2a0;
export const HART_STVAL = 0x2a8;
export const HART_SATP = 0x2b0;
export const HART_MENVCFG = 0x2b8;
export const HART_SENVCFG = 0x2c0;
export const HART_STIMECMP = 0x2c8;
/** f64: ticks at which STIP rises; infinity where Sstc is off or never */
export const HART_STIMECMP_TICKS = 0x2d0;
/** u32 each */
export const HART_MCOUNTEREN = 0x2d8;
export const HART_SCOUNTEREN = 0x2dc;
export const HART_MCOUNTINHIBIT = 0x2e0;
/** u32: SEIP as software wrote it; the pin is in HART_MIP */
export const HART_SEIP_SOFTWARE = 0x2e4;
/** u32: mhartid */
export const HART_ID = 0x2e8;
/** u32: 1 where S-mode ecalls are answered by the built-in SBI */
export const HART_BUILTIN_SBI = 0x2ec;
/** u64: host address of the reservation, 0 none; its value */
export const HART_RESERVATION = 0x2f0;
export const HART_RESERVED_VALUE = 0x2f8;
/** u8 × 16: pmpcfg; u64 × 16: pmpaddr; u64 × 16 each: first byte and last byte that the entry covers */
export const HART_PMPCFG = 0x300;
export const HART_PMPADDR = 0x310;
export const HART_PMP_FIRST = 0x390;
export const HART_PMP_LAST = 0x410;
/** u32: entries from 0 that may match */
export const HART_PMP_COUNT = 0x490;
/** u32: the host's MMIO had no device there */
export const HART_MMIO_FAULT = 0x494;
/** u64: what software's writes make mcycle differ by; its value while mcountinhibit stops it. For minstret alike */
export const HART_CYCLE_OFFSET = 0x498;
export const HART_INSTRET_OFFSET = 0x4b8;
/** u32: next predecoded page to replace */
export const HART_CODE_NEXT = 0x4a0;
/** u32: predecoded pages in use */
export const HART_CODE_USED = 0x4a4;
export const HART_MSECCFG = 0x4a8;
/** u32: the last fetch gave one instruction in the scratch slot, not a page of slots */
export const HART_FETCH_ONCE = 0x4b0;
export const HART_STATE_BYTES = 0x4c0;

// Words of the translator, derived from the rest: not part of a saved state
/** u64: what indirect jumps mix into their key of the jump cache: the privilege */
export const HART_JUMP_SALT = 0x4c0;
/** u32: execution cells that are set */
export const HART_EXEC_COUNT = 0x4c8;
/** u32: places of HART_ITLB_LIST in use */
export const HART_ITLB_COUNT = 0x4f0;
/** u32: nonzero where translated functions may be looked up */
export const HART_TRANSLATING = 0x4cc;
/** u32: address of the slot of the last indirect jump that was no return */
export const HART_JUMP_FROM = 0x4d0;
/**
 * The window of the current mode (window.ts): u64 its first address; u64 how far into it an access or a group of them may
 * begin, 0 where there is none; u32 host address of the first
 */
export const HART_WINDOW = 0x4d8;
export const HART_WINDOW_REACH = 0x4e0;
export const HART_WINDOW_HOST = 0x4e8;
/** By set of the data TLB: u64 first address, u64 bytes, u32 host address of the first, u32 whether it is global */
export const HART_WINDOWS = 0x500;
export const WINDOW_BYTES = 24;
/** An access or group of accesses that is looked for in a window is at most so long */
export const WINDOW_SPAN = 1024;
/** Bits by a hash of address and level: superpages that translations may have been taken of since all were forgotten */
export const HART_SUPERPAGES = 0x600;
export const SUPERPAGE_BITS = 2048;

// Words that other threads touch, on a cache line of their own
/** i32, atomic: interrupt pins: SSIP 1, MSIP 3, STIP 5, MTIP 7, SEIP 9, MEIP 11 */
export const HART_MIP = 0x800;
/** i32, atomic: requests to the hart's thread (pause, fence, start …) */
export const HART_ATTENTION = 0x804;
/** i32, atomic: counts wake-ups; WFI waits on it */
export const HART_DOORBELL = 0x808;
/** i32, atomic: what the hart is doing, for the machine's thread */
export const HART_RUN_STATE = 0x80c;
/** i32, atomic: SBI hart state: 0 started, 1 stopped, 2 start pending; u64s: where a pending start goes, its a1 */
export const HART_HSM = 0x810;
export const HART_START_ADDRESS = 0x818;
export const HART_START_OPAQUE = 0x820;
/** i32 × 16: the mailbox for MMIO that the machine's main thread serves */
export const HART_MAILBOX = 0x840;
/** u32: LOG_ bits: what the kernel tells its host (env.ts hostLog); written by the hart's own thread */
export const HART_LOG = 0x8c0;

/** u32: 1 where time follows from instructions: a write of stimecmp ends the run, so that the timer is on time */
export const HART_ICOUNT = 0x8c4;

/** u64 each, counted by the hart's own thread alone; names in hart/counters.ts, where new ones are added too */
export const HART_COUNTERS = 0x900;
export const COUNT_EXCEPTIONS = 0x900;
export const COUNT_INTERRUPTS = 0x908;
export const COUNT_FETCH_MISSES = 0x910;
export const COUNT_DATA_MISSES = 0x918;
export const COUNT_PAGE_WALKS = 0x920;
export const COUNT_TLB_FLUSHES = 0x928;
export const COUNT_MMIO_READS = 0x930;
export const COUNT_MMIO_WRITES = 0x938;
export const COUNT_CODE_PAGES = 0x940;
export const COUNT_CODE_STALE = 0x948;
export const COUNT_CODE_EVICTED = 0x950;
export const COUNT_DECODED = 0x958;
export const COUNT_MAILBOX = 0x960;
export const COUNT_SBI = 0x968;
export const COUNT_WAITS = 0x970;
export const COUNT_TRANSLATED_FUNCTIONS = 0x978;
export const COUNT_TRANSLATED_INSTRUCTIONS = 0x980;
export const COUNT_TRANSLATED_BYTES = 0x988;
/** In `µs` */
export const COUNT_TRANSLATE_TIME = 0x990;
export const COUNT_COMPILE_TIME = 0x998;
export const COUNT_TRANSLATION_FLUSHES = 0x9a0;
export const COUNT_TRANSLATED_MODULES = 0x9a8;
export const COUNT_TRANSLATIONS_DEFERRED = 0x9b0;
export const COUNT_PAGE_FLUSHES = 0x9b8;
export const COUNT_SPACE_FLUSHES = 0x9c0;
/** Times the interpreter has entered a translated function, and what was retired there until it came back */
export const COUNT_TRANSLATED_ENTRIES = 0x9c8;
export const COUNT_TRANSLATED_RETIRED = 0x9d0;
/** Counters may go up to here */
export const HART_COUNTERS_END = 0x1000;

/** One predecoded instruction that straddles two pages, with the page end after it */
export const HART_SCRATCH = 0x1000;
/** Four sets (U, S, S+SUM unused, M) of 256 entries: u64 page, u32 slot base, u32 whether it is global */
export const HART_ITLB_SETS = 0x4000;
export const ITLB_ENTRIES = 256;
export const ITLB_ENTRY_BYTES = 16;
export const ITLB_SET_BYTES = 0x1000;
export const ITLB_GLOBAL = 12;
/** Four sets of 1024 entries: u64 read tag, u64 write tag, u32 addend, u32 whether it is global, 8 bytes unused */
export const HART_DTLB_SETS = 0x10000;
export const DTLB_ENTRIES = 1024;
export const DTLB_ENTRY_BYTES = 32;
export const DTLB_SET_BYTES = 0x8000;
export const DTLB_GLOBAL = 20;

// What the translator keeps for a hart (decisions/0008)
/** u16 each, by a hash of the slot: how often a call, an indirect jump or a backward branch went there */
export const HART_VISITS = 0x30000;
export const VISIT_COUNTERS = 16384;
/** u32 slot | privilege, u32 table index, u32 argument, u32 least fuel: entries that were looked up, by slot */
export const HART_ENTRY_CACHE = 0x38000;
export const ENTRY_CACHE_ENTRIES = 2048;
/** u64 each, by code key: the page at which the key's code is known to be mapped now; all ones where it is not */
export const HART_EXEC_CELLS = 0x40000;
/** u16 each: the keys whose cells are set, and whether the page there is global */
export const HART_EXEC_LIST = 0x50000;
/** Code keys: one for each page, version and privilege that translated code was made of */
export const CODE_KEYS = 8192;
export const EXEC_GLOBAL = 0x8000;
/** u64 address ^ HART_JUMP_SALT, u32 table index, u32 entry: where indirect jumps go */
export const HART_JUMP_CACHE = 0x54000;
export const JUMP_CACHE_ENTRIES = 1024;
/** u16 each: entries of the instruction TLB, all that are set and some that are no more: what fence.i looks at */
export const HART_ITLB_LIST = 0x58000;
export const ITLB_LIST_LENGTH = 2048;
/** u8 each, by a hash of the host page: whether a translated function may begin in the page */
export const HART_ENTRY_PAGES = 0x59000;
export const ENTRY_PAGES_BITS = 12;
/** From one hart to the next */
export const HART_STRIDE = 0x80000;

// Predecoded pages: one slot for each halfword of a 4 KiB page, and one that says the page ends
export const SLOT_BYTES = 16;
/** u16 handler; u16 rd × 8 (x0: HART_X_DISCARD); u8 rs1, rs2, rs3 × 8; u8 length; i64 immediate */
export const SLOT_RD = 2;
export const SLOT_RS1 = 4;
export const SLOT_RS2 = 5;
export const SLOT_RS3 = 6;
export const SLOT_LENGTH = 7;
export const SLOT_IMM = 8;
/** Rounding mode of a floating-point row, and 1 where it may be round-to-nearest-even */
export const SLOT_RM = 8;
export const SLOT_RM_FAST = 12;
export const CODE_PAGE_SLOTS = 2048;
/** Slots of a page and the page-end slot, rounded to a cache line */
export const CODE_PAGE_BYTES = 32832;
/** u32 host address of the page, u32 version */
export const CODE_META_BYTES = 8;

/** Handlers from here on stand for themselves less this, and say that a translated function begins here */
export const HANDLER_TRANSLATED = 0x8000;

/** u32 host page, u32 version, u32 privilege, u32 unused */
export const CODE_KEY_BYTES = 16;
/** Open addressing by address: u32 host address, 0 for none; u32 table index, 0 where it was dropped; u32 entry number,
 * pages << 8 and privilege << 16; u32 least fuel; u16 × 8 code keys, 0xffff for none */
export const ENTRY_BYTES = 32;
export const ENTRIES_BITS = 15;
export const ENTRIES = 1 << ENTRIES_BITS;
export const ENTRY_KEYS = 16;
export const ENTRY_MAX_KEYS = 8;
// HART_LOG bits, and the kind that hostLog gets
/** A trap or interrupt is taken at HART_PC: cause, tval */
export const LOG_INT = 1;
/** An address was translated, or not: its address; the physical one; access, privilege << 3, cause << 8 (0: none) */
export const LOG_MMU = 2;
/** The instruction at HART_PC was decoded for the first time */
export const LOG_IN_ASM = 4;

/** Bits of the dirty map (machine_api.ts) that belong to the code cache */
export const DIRTY_CODE_BIT = 0x80;

// How a run ends
export const EXIT_FUEL = 0;
/** The host's poll asked for it */
export const EXIT_ATTENTION = 1;
/** Nothing to do until an interrupt */
export const EXIT_WFI = 2;
/** An SBI call from S-mode: registers a0..a7 */
export const EXIT_SBI = 3;
