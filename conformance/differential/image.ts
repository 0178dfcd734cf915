// Many programs in one image: code, data, page tables, descriptors. Both machines get the same bytes.
import { encode } from '../../emulator/isa/mod.ts';
import { floatValue, integerValue } from '../isa/operand_values.ts';
import { Random } from '../isa/random.ts';
import { type Assembled, assemble, type Section } from './assembly.ts';
import { CSR, X } from './handlers.ts';
import {
  DATA_OFFSET,
  DATA_PAGES,
  DESCRIPTORS,
  FAR_PIECE_BYTES,
  JUMP_BUFFERS,
  LEG,
  LEG_BYTES,
  LOCALS_BYTES,
  MAX_LEGS,
  PAGE,
  RAM_BASE,
  recordAt,
  SCRATCH,
  SCRATCH_WORDS,
  SLOT_BYTES,
  SLOTS,
  STATE,
  STATE_WORDS,
  slotBase,
  TABLES,
  WINDOW_ENTRIES,
  WINDOW_PRISTINE,
} from './layout.ts';
import { functionLabel, Lowering } from './lower.ts';
import { FLOAT_POOL, FLOAT_POOL_BYTES, GP_OFFSET, RANDOM_DATA_BYTES } from './memory_items.ts';
import { type LegPlan, type ProgramPlan, WINDOW_FUNCTION_BYTES, type Word } from './nodes.ts';
import { pageTables } from './page_tables.ts';
import { assembleRuntime, PRISTINE_SHARED_CODE, pristineEntries } from './runtime.ts';

const { ra, sp, gp, tp, t0 } = X;
/** Of the code's half of a slot: the pages that the window maps */
const WINDOW_CODE = 0x1_e000;
const TRAP_LIMIT = 50_000;
/** In ticks of 100 ns: interrupts on QEMU are that far apart, and up to 12.8 µs more */
const TIMER_INTERVAL = 500;
const MPP = { U: 0n, S: 1n << 11n, M: 3n << 11n } as const;
/** FS initial, MPIE; SIE for the supervisor */
const MSTATUS = (1n << 13n) | (1n << 7n);

export interface Leg {
  readonly program: ProgramPlan;
  readonly plan: LegPlan;
  readonly record: number;
}

export interface Image {
  readonly sections: readonly Section[];
  readonly legs: readonly Leg[];
  readonly programs: readonly ProgramPlan[];
}

/** Code of a program at its place; labels `entry` and `finish`, and its functions. */
export function assembleProgram(plan: ProgramPlan): Assembled {
  const base = slotBase(plan.slot);
  const lowering = new Lowering(plan);
  const a = lowering.code;
  const random = new Random(plan.seed ^ 0x5eed);
  a.label('entry')
    .address(sp, `data+${JUMP_BUFFERS - LOCALS_BYTES}`)
    .address(gp, `data+${GP_OFFSET}`);
  a.op('csrrwi', { rs1: plan.frm, csr: CSR.frm }).address(t0, `data+${FLOAT_POOL}`);
  for (let rd = 0; rd < 32; rd++) a.op('fld', { rd, rs1: t0, imm: 8 * (rd + (rd < 16 ? 0 : 64)) });
  for (let rd = 1; rd < 32; rd++) if (rd !== sp && rd !== gp) a.constant(rd, integerValue(random));
  a.jump(functionLabel(0), ra).label('finish').op('ecall').add({ align: 8 });
  lowering.functions();
  const assembled = assemble(base, a.pieces, (label) => dataAddress(base, label), plan.short);
  for (const { base: at, bytes } of assembled.sections) {
    // The last piece of far code ends with the page of the jump tables
    const most =
      at === base ? WINDOW_CODE : FAR_PIECE_BYTES - (at % FAR_PIECE_BYTES === 0 ? PAGE : FAR_PIECE_BYTES - PAGE);
    if (bytes.length > most) throw new RangeError('Cannot place the program: its code is too long');
  }
  return assembled;
}

const dataAddress = (base: number, label: string): number | undefined =>
  label.startsWith('data+') ? base + DATA_OFFSET + Number(label.slice(5)) : undefined;

/** Random doublewords, then floating-point values: doubles and, behind each 512 bytes of them, singles */
function programData(plan: ProgramPlan): Uint8Array {
  const random = new Random(plan.seed ^ 0xda7a);
  const bytes = new Uint8Array(SLOT_BYTES - DATA_OFFSET);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < RANDOM_DATA_BYTES; at += 8) view.setBigUint64(at, integerValue(random), true);
  for (let at = 0; at < FLOAT_POOL_BYTES; at += 8) {
    view.setBigUint64(FLOAT_POOL + at, floatValue(random, (at & 512) !== 0), true);
  }
  return bytes;
}

/** One page: functions at their places; the last one runs over its end, by an instruction that straddles it */
function windowCode(functions: readonly (readonly Word[])[]): Uint8Array {
  const bytes = new Uint8Array(PAGE);
  const view = new DataView(bytes.buffer);
  for (const [index, words] of functions.entries()) {
    const last = index === functions.length - 1;
    const length = (word: Word) => ((word & 3) === 3 ? 4 : 2);
    const put = (at: number, word: Word): number => {
      view.setUint16(at, word & 0xffff, true);
      if (length(word) === 4) view.setUint16(at + 2, word >>> 16, true);
      return at + length(word);
    };
    let at = index * WINDOW_FUNCTION_BYTES;
    for (const word of words) at = put(at, word);
    if (!last) put(at, encode('jalr', { rs1: ra }));
    // The low half differs between the spaces, the high half is the shared page's
    const straddling = encode(words.length % 2 === 0 ? 'addi' : 'xori', { rd: 10 + (words.length % 4), rs1: 10 });
    if (last) {
      while (at < PAGE - 2) at = put(at, 0x0001);
      view.setUint16(PAGE - 2, straddling & 0xffff, true);
    }
  }
  return bytes;
}

/**
 * The end of what straddles; then functions that call those of the page before, which differ between the spaces, while
 * this page does not.
 */
function sharedCode(): Uint8Array {
  const bytes = new Uint8Array(PAGE);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, encode('addi', { rd: 10, rs1: 10, imm: 77 }) >>> 16, true);
  const words = [encode('add', { rd: tp, rs1: tp, rs2: 10 }), encode('xor', { rd: tp, rs1: tp, rs2: 11 })];
  for (const [index, word] of [...words, encode('jalr', { rs1: ra })].entries())
    view.setUint32(2 + 4 * index, word, true);
  const kept = 31;
  for (let at = WINDOW_FUNCTION_BYTES; at < PAGE; at += WINDOW_FUNCTION_BYTES) {
    const calling = [
      encode('addi', { rd: kept, rs1: ra }),
      encode('jal', { rd: ra, imm: -PAGE - 4 }),
      encode('add', { rd: tp, rs1: tp, rs2: 12 }),
      encode('jalr', { rs1: kept }),
    ];
    for (const [index, word] of calling.entries()) view.setUint32(at + 4 * index, word, true);
  }
  return bytes;
}

function pristineWindow(): Uint8Array {
  const entries = pageTables.windows.length * WINDOW_ENTRIES * 8;
  const bytes = new Uint8Array(pristineEntries(0) - WINDOW_PRISTINE + entries);
  const view = new DataView(bytes.buffer);
  const random = new Random(2);
  for (let at = 0; at < DATA_PAGES * PAGE; at += 8) view.setBigUint64(at, integerValue(random), true);
  bytes.set(sharedCode(), PRISTINE_SHARED_CODE - WINDOW_PRISTINE);
  for (const [space, table] of pageTables.windows.entries()) {
    const from = table - TABLES;
    bytes.set(pageTables.bytes.subarray(from, from + 8 * WINDOW_ENTRIES), pristineEntries(space) - WINDOW_PRISTINE);
  }
  return bytes;
}

export function buildImage(programs: readonly ProgramPlan[]): Image {
  const legs: Leg[] = [];
  const descriptors = new Uint8Array(MAX_LEGS * LEG_BYTES);
  const view = new DataView(descriptors.buffer);
  const sections: Section[] = [];
  for (const program of programs) {
    if (program.slot >= SLOTS) throw new RangeError(`Cannot place program ${program.slot}: there are ${SLOTS} slots`);
    const base = slotBase(program.slot);
    const { sections: code, labels } = assembleProgram(program);
    const window = base + WINDOW_CODE;
    sections.push(...code, { base: base + DATA_OFFSET, bytes: programData(program) });
    for (const [index, functions] of program.windows.entries()) {
      sections.push({ base: window + index * PAGE, bytes: windowCode(functions) });
    }
    for (const plan of program.legs) {
      const at = legs.length * LEG_BYTES;
      const set = (offset: number, value: bigint | number) => view.setBigUint64(at + offset, BigInt(value), true);
      const flags = (plan.sum ? 1n << 18n : 0n) | (plan.mxr ? 1n << 19n : 0n) | (plan.mode === 'S' ? 2n : 0n);
      set(LEG.entry, labels.get('entry')!);
      set(LEG.finishPc, labels.get('finish')!);
      set(LEG.satp, plan.paging ? pageTables.satp(plan.mode === 'U' ? 'U' : 'S', plan.space) : 0n);
      set(LEG.mstatus, MSTATUS | MPP[plan.mode] | flags);
      set(LEG.medeleg, plan.mode === 'M' ? 0 : plan.medeleg);
      set(LEG.windowA, window);
      set(LEG.windowB, window + PAGE);
      set(LEG.trapLimit, TRAP_LIMIT);
      set(LEG.slot, base);
      set(LEG.entriesS, pageTables.entries('S', program.slot));
      set(LEG.entriesU, pageTables.entries('U', program.slot));
      set(LEG.moves, program.timerMoves === true ? 1 : 0);
      legs.push({ program, plan, record: recordAt(legs.length) });
    }
  }
  const state = new Uint8Array(PAGE);
  new DataView(state.buffer).setBigUint64(STATE_WORDS.legs, BigInt(legs.length), true);
  const scratch = new Uint8Array(PAGE);
  new DataView(scratch.buffer).setBigUint64(SCRATCH_WORDS.interval, BigInt(TIMER_INTERVAL), true);
  sections.push(
    { base: RAM_BASE, bytes: assembleRuntime(pageTables) },
    { base: STATE, bytes: state },
    { base: SCRATCH, bytes: scratch },
    { base: DESCRIPTORS, bytes: descriptors },
    { base: TABLES, bytes: pageTables.bytes },
    { base: WINDOW_PRISTINE, bytes: pristineWindow() },
  );
  return { sections, legs, programs };
}
