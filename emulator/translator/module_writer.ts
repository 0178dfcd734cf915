// Assembles regions into a WebAssembly module that fills its place in the harts' table when it is instantiated.
import { KERNEL_FUNCTIONS, TRANSLATED_FUNCTION } from '../kernel/kernel_functions.ts';
import { ModuleBuilder, signature } from '../wasm/module_builder.ts';
import { emitMultiplyHigh } from '../wasm/multiply_high.ts';
import { TYPE_I64 } from '../wasm/opcodes.ts';
import type { EntryPoint, Link, WriterContext } from './function_context.ts';
import { writeFunction } from './function_writer.ts';
import type { Region } from './region.ts';

/** What every module imports; with arithmetic on floating point, what is not done natively beside */
const ALWAYS = ['validateCode', 'systemWord'];
const FLOATS = ['f32_min', 'f32_max', 'f32_class', 'f64_class'];
const HIGH = ['uu', 'ss', 'su'] as const;

export type ModuleContext = Omit<WriterContext, 'call' | 'functionType' | keyof Omit<ModulePart, 'region'>>;

export interface ModulePart {
  readonly region: Region;
  readonly windowRegisters: number;
  keyOf(pageNumber: number): number;
  /** The part of this module, or the place in the table, that a call from this region to `target` reaches */
  link(target: number): { readonly part: number } | { readonly table: number } | undefined;
  byteTable(bytes: Uint8Array): number | undefined;
}

export interface WrittenModule {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of each part */
  readonly entries: readonly (readonly EntryPoint[])[];
}

/** Part n becomes the function at `tableAt + n`. */
export function writeModule(parts: readonly ModulePart[], tableAt: number, context: ModuleContext): WrittenModule {
  const builder = new ModuleBuilder();
  const floats = parts.some(({ region }) =>
    [...region.blocks.values()].some(({ instructions }) => instructions.some(({ facts }) => facts.floats)),
  );
  const indices = new Map<string, number>();
  for (const name of floats ? [...ALWAYS, ...FLOATS] : ALWAYS) {
    indices.set(name, builder.importFunction(name, KERNEL_FUNCTIONS[name]!));
  }
  const first = builder.importedFunctions;
  const functionType = builder.type(TRANSLATED_FUNCTION);
  let needsHigh = false;
  for (const [offset, kind] of HIGH.entries()) indices.set(`mulHigh_${kind}`, first + parts.length + offset);
  const call = (name: string): number => {
    if (name.startsWith('mulHigh')) needsHigh = true;
    const index = indices.get(name);
    if (index === undefined) throw new Error(`A translated module has no function ${name}`);
    return index;
  };
  const entries: (readonly EntryPoint[])[] = [];
  for (const part of parts) {
    const link = (target: number): Link | undefined => {
      const found = part.link(target);
      if (found === undefined) return undefined;
      if ('part' in found) return { kind: 'direct', index: first + found.part };
      return { kind: 'table', index: found.table };
    };
    const body = builder.function(undefined, TRANSLATED_FUNCTION);
    entries.push(
      writeFunction(body, part.region, {
        ...context,
        call,
        functionType,
        windowRegisters: part.windowRegisters,
        keyOf: part.keyOf,
        link,
        byteTable: part.byteTable,
      }),
    );
  }
  if (needsHigh) {
    const type = signature([TYPE_I64, TYPE_I64], TYPE_I64);
    for (const kind of HIGH) {
      emitMultiplyHigh(builder.function(undefined, type), kind, indices.get('mulHigh_uu')!);
    }
  }
  builder.elements(
    tableAt,
    parts.map((_, index) => first + index),
  );
  return { bytes: builder.finish(), entries };
}
