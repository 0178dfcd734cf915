import { signature } from '../wasm/module_builder.ts';
import { TYPE_I32, TYPE_I64 } from '../wasm/opcodes.ts';

/** A translated function: address, argument, hart → where to go on; odd where the interpreter is to do what stands there */
export const TRANSLATED_FUNCTION = signature([TYPE_I64, TYPE_I32, TYPE_I32], TYPE_I64);

/** Functions of the kernel that generated code calls, by the types of their arguments and result. */
export const KERNEL_FUNCTIONS: Readonly<Record<string, ReturnType<typeof signature>>> = {
  fetchSlow: signature([], TYPE_I32),
  decodeSlot: signature([TYPE_I32, TYPE_I32], TYPE_I32),
  loadSlow: signature([TYPE_I64, TYPE_I32], TYPE_I64),
  storeSlow: signature([TYPE_I64, TYPE_I32, TYPE_I64]),
  atomicAddress: signature([TYPE_I64, TYPE_I32, TYPE_I32], TYPE_I32),
  system: signature([TYPE_I32, TYPE_I32], TYPE_I32),
  systemWord: signature([TYPE_I32, TYPE_I64, TYPE_I32], TYPE_I32),
  illegalInstruction: signature([TYPE_I64]),
  illegalHere: signature([]),
  beginFloat: signature([TYPE_I32], TYPE_I32),
  findEntry: signature([TYPE_I32], TYPE_I32),
  validateCode: signature([TYPE_I32, TYPE_I64], TYPE_I32),
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
