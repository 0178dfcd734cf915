import {
  HANDLER_FIRST_ROW,
  HANDLER_ILLEGAL,
  HANDLER_PAGE_END,
  HANDLER_UNDECODED,
  handlerOf,
  INSTRUCTIONS,
} from '../isa/table.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import { KERNEL_FUNCTIONS, TRANSLATED_FUNCTION } from '../kernel/kernel_functions.ts';
import { type FunctionBody, ModuleBuilder, signature } from '../wasm/module_builder.ts';
import { emitMultiplyHigh } from '../wasm/multiply_high.ts';
import { LOAD64, I32 as OP32, I64 as OP64, STORE64, TYPE_I32, TYPE_I64 } from '../wasm/opcodes.ts';
import { SlotEmitter } from './slot_emitter.ts';

const I32_LOAD = 0x28;
const I32_LOAD16_U = 0x2f;
const I32_STORE = 0x36;
const I32_STORE16 = 0x3b;
const I32_WRAP = 0xa7;
const I64_EXTEND_I32_U = 0xad;
const PAGE_SLOT_BYTES = H.CODE_PAGE_SLOTS * H.SLOT_BYTES;

export interface InterpreterOptions {
  /** Base address of the hart */
  readonly hart: number;
  /** Dirty byte of ROM's first page, and ROM's address: the map is indexed by host page */
  readonly dirty: number;
  readonly rom: number;
  /** Counted jumps to one place after which it is worth translating; 0 where nothing is translated */
  readonly hotAfter: number;
}

/**
 * Generates the interpreter from the instruction table, for one hart: all hart fields are constant addresses.
 *
 * `run(fuel)` executes up to `fuel` instructions and gives an EXIT_ code; the hart's state is in memory then.
 * One loop dispatches by `br_table` on predecoded slots (docs: emulator/kernel/assembly/hart_layout.ts). Jumps
 * inside a page move the slot pointer; others go by the fetch TLB. What leaves a handler early goes through
 * HART_PC: `reload` reads mode and address from there.
 */
export function generateInterpreter(options: InterpreterOptions): Uint8Array<ArrayBuffer> {
  const builder = new ModuleBuilder();
  const indices = new Map<string, number>();
  for (const [name, type] of Object.entries(KERNEL_FUNCTIONS)) indices.set(name, builder.importFunction(name, type));
  indices.set('hot', builder.importFunction('hot', signature([TYPE_I32])));
  const imports = indices.size;
  builder.importTable();
  const translated = builder.type(TRANSLATED_FUNCTION);
  const run = builder.function('run', signature([TYPE_I32], TYPE_I32));
  for (const [offset, kind] of (['uu', 'ss', 'su'] as const).entries()) {
    const type = signature([TYPE_I64, TYPE_I64], TYPE_I64);
    emitMultiplyHigh(builder.function(`mulHigh_${kind}`, type), kind, imports + 1);
    indices.set(`mulHigh_${kind}`, imports + 1 + offset);
  }
  // What stands in the table where nothing is translated: goes nowhere
  builder.function('leave', TRANSLATED_FUNCTION).get(0);
  emitRun(run, options, translated, (name) => {
    const index = indices.get(name);
    if (index === undefined) throw new Error(`The interpreter has no function ${name}`);
    return index;
  });
  return builder.finish();
}

function emitRun(
  f: FunctionBody,
  options: InterpreterOptions,
  translated: number,
  call: (name: string) => number,
): void {
  const { hart } = options;
  const fuel = 0; // the parameter
  const slot = f.local(TYPE_I32);
  const base = f.local(TYPE_I32);
  const limit = f.local(TYPE_I32);
  const page = f.local(TYPE_I64);
  const pageTag = f.local(TYPE_I64);
  const target = f.local(TYPE_I64);
  const dtlb = f.local(TYPE_I32);
  const itlb = f.local(TYPE_I32);
  const exit = f.local(TYPE_I32);
  const entry = f.local(TYPE_I32);
  /** 1 where the far jump under way is to be counted */
  const counted = f.local(TYPE_I32);
  const counter = f.local(TYPE_I32);
  const translating = options.hotAfter > 0;

  const get32 = (offset: number): FunctionBody => f.i32(hart).mem(I32_LOAD, offset);
  const leave = (): void => {
    // HART_PC is right; what is left of the fuel was not executed
    f.i32(hart).get(fuel).mem(I32_STORE, H.HART_FUEL);
    f.get(exit).ret();
  };
  const storePc = (): void => {
    f.i32(hart).get(page).get(slot).get(base).op(OP32.sub).i32(3).op(OP32.shr_u).op(I64_EXTEND_I32_U).op(OP64.add);
    f.mem(STORE64.d, H.HART_PC);
  };

  f.i64(-1).set(pageTag);
  f.i32(0).set(exit);
  const top = f.loop();
  {
    const reload = f.block();
    const far = f.block();
    {
      // --- enter at HART_PC: also where the run starts
      f.get(slot).op(OP32.eqz).brIf(reload);
      const next = f.loop();
      const count = f.block();
      f.get(fuel).op(OP32.eqz);
      f.if();
      storePc();
      f.i32(hart).i32(0).mem(I32_STORE, H.HART_FUEL);
      f.i32(H.EXIT_FUEL).set(exit);
      leave();
      f.end();
      f.get(fuel).i32(1).op(OP32.sub).set(fuel);
      emitDispatch(
        f,
        options,
        { call, next, count, far, reload, slot, base, limit, page, target, dtlb, fuel, exit, counted },
        { pageTag, storePc, translated, translating },
      );
      f.end();
      // --- count: a jump has set the slot
      if (translating) bump();
      f.br(next);
      f.end();
    }
    f.end();
    // --- far: `target` is the address
    f.get(target).i64(-4096).op(OP64.and).get(pageTag).op(OP64.eq);
    f.if();
    f.get(base).get(target).op(I32_WRAP).i32(4095).op(OP32.and).i32(3).op(OP32.shl).op(OP32.add).set(slot);
    countFar();
    f.br(top);
    f.end();
    lookUp();
    countFar();
    f.br(top);
  }
  f.end();
  // --- reload: mode and address may be new
  f.get(exit);
  f.if();
  f.i32(hart).i32(0).mem(I32_STORE, H.HART_TRAPPED);
  leave();
  f.end();
  f.i32(hart).i32(0).mem(I32_STORE, H.HART_TRAPPED);
  get32(H.HART_DTLB).set(dtlb);
  get32(H.HART_ITLB).set(itlb);
  f.i32(hart).mem(LOAD64.d, H.HART_PC).set(target);
  lookUp();
  f.br(top);
  f.end();
  f.op(0x00); // unreachable: the loop never ends by itself

  /** Counts a jump to `slot`; at the limit, says so: the slot may say then that it is translated. */
  function bump(): void {
    const index = H.VISIT_COUNTERS - 1;
    // Two bytes a counter, sixteen a slot
    f.get(slot)
      .i32(3)
      .op(OP32.shr_u)
      .i32(index << 1)
      .op(OP32.and)
      .tee(entry);
    f.get(entry)
      .mem(I32_LOAD16_U, hart + H.HART_VISITS)
      .i32(1)
      .op(OP32.add)
      .tee(counter);
    f.mem(I32_STORE16, hart + H.HART_VISITS);
    f.get(counter).i32(options.hotAfter).op(OP32.eq);
    f.hint(false).if();
    storePc();
    f.get(slot).call(call('hot'));
    f.end();
  }
  function countFar(): void {
    if (!translating) return;
    f.get(counted);
    f.if();
    f.i32(0).set(counted);
    bump();
    f.end();
  }

  /** Finds the slots of `target`'s page by the fetch TLB or the kernel, and the slot in it. */
  function lookUp(): void {
    const again = f.loop();
    f.get(target).i64(-4096).op(OP64.and).tee(page).set(pageTag);
    f.i32(PAGE_SLOT_BYTES).set(limit);
    f.get(target)
      .op(I32_WRAP)
      .i32(12)
      .op(OP32.shr_u)
      .i32(H.ITLB_ENTRIES - 1)
      .op(OP32.and)
      .i32(4)
      .op(OP32.shl);
    f.get(itlb).op(OP32.add).tee(entry).mem(LOAD64.d, 0).get(page).op(OP64.eq);
    f.if(TYPE_I32);
    f.get(entry).mem(I32_LOAD, 8);
    f.else();
    f.i32(hart).get(target).mem(STORE64.d, H.HART_PC);
    // Fetching may trap, and a trap takes fuel
    f.get(fuel).op(OP32.eqz);
    f.if();
    f.i32(H.EXIT_FUEL).set(exit);
    leave();
    f.end();
    f.call(call('fetchSlow'));
    // Only one instruction of the page may be run: as one that straddles, it stands in the scratch slot
    get32(H.HART_FETCH_ONCE);
    f.if();
    f.i64(-1).set(pageTag);
    f.i32(0).set(limit);
    f.end();
    f.end();
    f.tee(base).op(OP32.eqz);
    f.if();
    // The fetch trapped: go on at the handler, in its mode
    f.i32(hart).i32(0).mem(I32_STORE, H.HART_TRAPPED);
    get32(H.HART_DTLB).set(dtlb);
    get32(H.HART_ITLB).set(itlb);
    f.i32(hart).mem(LOAD64.d, H.HART_PC).set(target);
    // A handler that cannot be fetched either must not spin without spending fuel
    f.get(fuel).i32(1).op(OP32.sub).set(fuel);
    f.br(again);
    f.end();
    f.end();
    f.get(base).get(target).op(I32_WRAP).i32(4095).op(OP32.and).i32(3).op(OP32.shl).op(OP32.add).set(slot);
  }
}

interface DispatchFrame {
  call: (name: string) => number;
  next: number;
  count: number;
  counted: number;
  far: number;
  reload: number;
  slot: number;
  base: number;
  limit: number;
  page: number;
  target: number;
  dtlb: number;
  fuel: number;
  exit: number;
}

/** The br_table and every handler. */
function emitDispatch(
  f: FunctionBody,
  options: InterpreterOptions,
  frame: DispatchFrame,
  own: { pageTag: number; storePc: () => void; translated: number; translating: boolean },
): void {
  const { hart } = options;
  const { slot, base, limit, page, target, next, far, reload, fuel, call } = frame;
  const handlers: { number: number; emit: () => void }[] = [];
  /** Of decodeSlot: 0 decoded, 1 straddles, 2 trapped */
  const outcome = f.local(TYPE_I32);
  const emitter = new SlotEmitter(f, { ...frame, hart, dirtyOffset: options.dirty - (options.rom >>> 12) });

  handlers.push({
    number: HANDLER_UNDECODED,
    emit: () => {
      own.storePc();
      f.get(slot).get(base).call(call('decodeSlot')).tee(outcome);
      // A fetch that trapped has used its fuel, as every trap does: minstret is counted by that
      f.i32(2).op(OP32.eq).brIf(reload);
      f.get(frame.fuel).i32(1).op(OP32.add).set(frame.fuel); // decoding is not an instruction
      f.get(outcome).op(OP32.eqz).brIf(next);
      // The scratch slot stands in for the page's last, with everything but pc-relative moves inside the page
      f.i32(hart + H.HART_SCRATCH).set(slot);
      f.i32(hart + H.HART_SCRATCH - (H.CODE_PAGE_SLOTS - 1) * H.SLOT_BYTES).set(base);
      f.i32(0).set(limit);
      f.i64(-1).set(own.pageTag);
      f.br(next);
    },
  });
  handlers.push({
    number: HANDLER_PAGE_END,
    emit: () => {
      f.get(frame.fuel).i32(1).op(OP32.add).set(frame.fuel);
      f.get(page).get(slot).get(base).op(OP32.sub).i32(3).op(OP32.shr_u).op(I64_EXTEND_I32_U).op(OP64.add);
      f.set(target).br(far);
    },
  });
  handlers.push({
    number: HANDLER_ILLEGAL,
    emit: () => {
      emitter.begin(4);
      emitter.illegal();
    },
  });
  for (const [index, row] of INSTRUCTIONS.entries()) {
    for (const compressed of row.compressed === true ? [false, true] : [false]) {
      handlers.push({
        number: handlerOf(index, compressed),
        emit: () => {
          emitter.begin(compressed ? 2 : 4);
          row.emit(emitter);
          emitter.finish();
        },
      });
    }
  }

  const count = HANDLER_FIRST_ROW + INSTRUCTIONS.length * 2;
  const labels: number[] = [];
  const byNumber = new Map(handlers.map((handler, order) => [handler.number, order]));
  // Blocks open in reverse: the first handler's label is the innermost
  const blockOf: number[] = [];
  for (let order = handlers.length - 1; order >= 0; order--) blockOf[order] = f.block();
  const illegalOrder = byNumber.get(HANDLER_ILLEGAL)!;
  for (let number = 0; number < count; number++) labels.push(blockOf[byNumber.get(number) ?? illegalOrder]!);
  const translatedHere = f.block();
  f.get(slot).mem(I32_LOAD16_U, 0);
  f.brTable(labels, translatedHere);
  f.end();
  // A number past the table: a translated function begins here
  if (own.translating) emitEnter();
  f.get(slot)
    .mem(I32_LOAD16_U, 0)
    .i32(H.HANDLER_TRANSLATED - 1)
    .op(OP32.and);
  f.brTable(labels, blockOf[illegalOrder]!);
  for (const handler of handlers) {
    f.end();
    handler.emit();
  }

  /** Calls the function; falls through where there is none, or it did nothing and the instruction is to be interpreted. */
  function emitEnter(): void {
    const line = f.local(TYPE_I32);
    const pc = f.local(TYPE_I64);
    const interpret = f.block();
    f.get(slot)
      .i32((H.ENTRY_CACHE_ENTRIES - 1) << 4)
      .op(OP32.and)
      .i32(hart + H.HART_ENTRY_CACHE)
      .op(OP32.add);
    f.tee(line).mem(I32_LOAD, 0).get(slot).i32(hart).mem(I32_LOAD, H.HART_PRIV).op(OP32.or).op(OP32.ne);
    f.if();
    own.storePc();
    f.get(slot).call(call('findEntry')).tee(line).op(OP32.eqz).brIf(interpret);
    f.end();
    // This instruction's fuel is spent already: the function spends it again
    f.get(fuel).i32(1).op(OP32.add).get(line).mem(I32_LOAD, 12).op(OP32.lt_u).brIf(interpret);
    f.i32(hart).get(fuel).i32(1).op(OP32.add).mem(I32_STORE, H.HART_FUEL);
    f.get(page).get(slot).get(base).op(OP32.sub).i32(3).op(OP32.shr_u).op(I64_EXTEND_I32_U).op(OP64.add).tee(pc);
    f.get(line).mem(I32_LOAD, 8).i32(hart).get(line).mem(I32_LOAD, 4).callIndirect(own.translated).set(target);
    // An odd address: the interpreter is to do what stands there, and it counts as no visit
    f.i32(1).get(target).op(I32_WRAP).op(OP32.sub).i32(1).op(OP32.and).set(frame.counted);
    f.get(target).i64(-2).op(OP64.and).tee(target).get(pc).op(OP64.eq);
    f.i32(hart).mem(I32_LOAD, H.HART_FUEL).get(fuel).i32(1).op(OP32.add).op(OP32.eq).op(OP32.and);
    f.if();
    f.i32(0).set(frame.counted).br(interpret);
    f.end();
    addTo(H.COUNT_TRANSLATED_ENTRIES, () => f.i64(1));
    // What is left of the fuel, from what was there
    addTo(H.COUNT_TRANSLATED_RETIRED, () => {
      f.get(fuel).i32(1).op(OP32.add).i32(hart).mem(I32_LOAD, H.HART_FUEL).op(OP32.sub).op(I64_EXTEND_I32_U);
    });
    f.i32(hart).mem(I32_LOAD, H.HART_FUEL).set(fuel);
    // A CSR instruction in it may have trapped or taken an interrupt (HART_PC is the handler), or changed SUM
    f.i32(hart).mem(I32_LOAD, H.HART_TRAPPED).brIf(reload);
    f.i32(hart).mem(I32_LOAD, H.HART_DTLB).set(frame.dtlb);
    f.br(far);
    f.end();
  }

  function addTo(counter: number, amount: () => void): void {
    f.i32(hart).i32(hart).mem(LOAD64.d, counter);
    amount();
    f.op(OP64.add).mem(STORE64.d, counter);
  }
}
