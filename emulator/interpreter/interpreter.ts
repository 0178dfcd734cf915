import {
  HANDLER_FIRST_ROW,
  HANDLER_ILLEGAL,
  HANDLER_PAGE_END,
  HANDLER_UNDECODED,
  handlerOf,
  INSTRUCTIONS,
} from '../isa/table.ts';
import * as H from '../kernel/assembly/hart_layout.ts';
import { type FunctionBody, ModuleBuilder, signature } from '../wasm/module_builder.ts';
import { LOAD64, I32 as OP32, I64 as OP64, STORE64, TYPE_I32, TYPE_I64 } from '../wasm/opcodes.ts';
import { SlotEmitter } from './slot_emitter.ts';

const I32_LOAD = 0x28;
const I32_LOAD16_U = 0x2f;
const I32_STORE = 0x36;
const I32_WRAP = 0xa7;
const I64_EXTEND_I32_U = 0xad;
const PAGE_SLOT_BYTES = H.CODE_PAGE_SLOTS * H.SLOT_BYTES;

/** Functions that the generated module imports from the kernel, by the types of their arguments and result. */
const KERNEL_FUNCTIONS: Readonly<Record<string, ReturnType<typeof signature>>> = {
  fetchSlow: signature([], TYPE_I32),
  decodeSlot: signature([TYPE_I32, TYPE_I32], TYPE_I32),
  loadSlow: signature([TYPE_I64, TYPE_I32], TYPE_I64),
  storeSlow: signature([TYPE_I64, TYPE_I32, TYPE_I64]),
  atomicAddress: signature([TYPE_I64, TYPE_I32, TYPE_I32], TYPE_I32),
  system: signature([TYPE_I32, TYPE_I32], TYPE_I32),
  illegalInstruction: signature([TYPE_I64]),
  illegalHere: signature([]),
  beginFloat: signature([TYPE_I32], TYPE_I32),
  ...floatFunctions('f32', TYPE_I32),
  ...floatFunctions('f64', TYPE_I64),
  f32_to_f64: signature([TYPE_I32], TYPE_I64),
  f64_to_f32: signature([TYPE_I64, TYPE_I32], TYPE_I32),
};

function floatFunctions(prefix: string, type: number): Record<string, ReturnType<typeof signature>> {
  const all: Record<string, ReturnType<typeof signature>> = {};
  for (const name of ['add', 'sub', 'mul', 'div']) all[`${prefix}_${name}`] = signature([type, type, TYPE_I32], type);
  for (const name of ['min', 'max']) all[`${prefix}_${name}`] = signature([type, type], type);
  for (const name of ['eq', 'lt', 'le']) all[`${prefix}_${name}`] = signature([type, type], TYPE_I32);
  all[`${prefix}_sqrt`] = signature([type, TYPE_I32], type);
  all[`${prefix}_fma`] = signature([type, type, type, TYPE_I32], type);
  all[`${prefix}_class`] = signature([type], TYPE_I32);
  for (const kind of ['i32', 'u32', 'i64', 'u64']) {
    all[`${prefix}_to_${kind}`] = signature([type, TYPE_I32], TYPE_I64);
    all[`${kind}_to_${prefix}`] = signature([TYPE_I64, TYPE_I32], type);
  }
  return all;
}

export interface InterpreterOptions {
  /** Base address of the hart */
  readonly hart: number;
  /** Dirty byte of ROM's first page, and ROM's address: the map is indexed by host page */
  readonly dirty: number;
  readonly rom: number;
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
  for (const [name, type] of Object.entries(KERNEL_FUNCTIONS)) indices.set(name, builder.import(name, type));
  const imports = indices.size;
  const run = builder.function('run', signature([TYPE_I32], TYPE_I32));
  for (const [offset, kind] of (['uu', 'ss', 'su'] as const).entries()) {
    const type = signature([TYPE_I64, TYPE_I64], TYPE_I64);
    emitMulHigh(builder.function(`mulHigh_${kind}`, type), kind, imports + 1);
    indices.set(`mulHigh_${kind}`, imports + 1 + offset);
  }
  emitRun(run, options, (name) => {
    const index = indices.get(name);
    if (index === undefined) throw new Error(`The interpreter has no function ${name}`);
    return index;
  });
  return builder.finish();
}

/** High half of a product by four 32-bit multiplications; the signed ones correct the unsigned result. */
function emitMulHigh(f: FunctionBody, kind: 'ss' | 'uu' | 'su', unsignedIndex: number): void {
  const [a, b] = [0, 1];
  if (kind !== 'uu') {
    f.get(a).get(b).call(unsignedIndex);
    f.get(a).i64(63).op(OP64.shr_s).get(b).op(OP64.and).op(OP64.sub);
    if (kind === 'ss') f.get(b).i64(63).op(OP64.shr_s).get(a).op(OP64.and).op(OP64.sub);
    return;
  }
  const low = f.local(TYPE_I64);
  const middle = f.local(TYPE_I64);
  const mask = 0xffff_ffff;
  const half = (x: number, high: boolean): FunctionBody =>
    high ? f.get(x).i64(32).op(OP64.shr_u) : f.get(x).i64(mask).op(OP64.and);
  // low = a.low × b.low; middle = a.high × b.low + (low >> 32)
  half(a, false);
  half(b, false).op(OP64.mul).i64(32).op(OP64.shr_u).set(low);
  half(a, true);
  half(b, false).op(OP64.mul).get(low).op(OP64.add).set(middle);
  // low = a.low × b.high + middle.low
  half(a, false);
  half(b, true).op(OP64.mul);
  half(middle, false).op(OP64.add).set(low);
  // a.high × b.high + middle.high + (low >> 32)
  half(a, true);
  half(b, true).op(OP64.mul);
  half(middle, true).op(OP64.add).get(low).i64(32).op(OP64.shr_u).op(OP64.add);
}

function emitRun(f: FunctionBody, options: InterpreterOptions, call: (name: string) => number): void {
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
        { call, next, far, reload, slot, base, limit, page, target, dtlb, fuel, exit },
        {
          pageTag,
          storePc,
        },
      );
      f.end();
    }
    f.end();
    // --- far: `target` is the address
    f.get(target).i64(-4096).op(OP64.and).get(pageTag).op(OP64.eq);
    f.if();
    f.get(base).get(target).op(I32_WRAP).i32(4095).op(OP32.and).i32(3).op(OP32.shl).op(OP32.add).set(slot);
    f.br(top);
    f.end();
    lookUp();
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
  own: { pageTag: number; storePc: () => void },
): void {
  const { hart } = options;
  const { slot, base, limit, page, target, next, far, reload, call } = frame;
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
  f.get(slot).mem(I32_LOAD16_U, 0);
  f.brTable(labels, blockOf[illegalOrder]!);
  for (const handler of handlers) {
    f.end();
    handler.emit();
  }
}
