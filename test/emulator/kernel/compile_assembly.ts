// Compiles AssemblyScript of the kernel and instantiates it alone, with a hart of its own.

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import asc from 'assemblyscript/asc';
import { type WasmMemory, wasm } from '../../../emulator/wasm/platform.ts';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const FLAGS =
  '-O2 --runtime stub --importMemory --sharedMemory --initialMemory 16 --maximumMemory 65536 --enable threads,simd,bulk-memory --noExportMemory --use abort= --noAssert';

export interface CompiledAssembly {
  readonly exports: Record<string, CallableFunction>;
  readonly memory: WasmMemory;
}

/** @param hart base of the hart in the memory, in bytes */
export async function compileAssembly(entry: string, hart: number): Promise<CompiledAssembly> {
  let binary: Uint8Array | undefined;
  const { error, stderr } = await asc.main([entry, '--outFile', 'out.wasm', ...FLAGS.split(' ')], {
    readFile: (name: string, baseDir: string) => readFile(`${baseDir}/${name}`, 'utf8').catch(() => null),
    writeFile: (name: string, contents: Uint8Array | string) => {
      if (name === 'out.wasm' && typeof contents !== 'string') binary = contents;
    },
    listFiles: () => [],
    baseDir: ROOT,
  } as never);
  if (error !== null || binary === undefined) throw new Error(`Cannot compile ${entry}: ${error} ${stderr}`);
  const memory = new wasm.Memory({ initial: 16, maximum: 65536, shared: true });
  const { exports } = new wasm.Instance(new wasm.Module(binary), { env: { memory, HART: hart } });
  return { exports: exports as Record<string, CallableFunction>, memory };
}
