import { buildDecodeTables } from '../isa/table.ts';
import { TABLE_BUCKETS, TABLE_COMPRESSED, TABLE_ENTRIES } from '../memory/layout.ts';
import type { WasmMemory } from '../wasm/platform.ts';

/** Writes the decoder's tables; once, before any hart runs. */
export function installDecodeTables(memory: WasmMemory): void {
  const tables = buildDecodeTables();
  const bytes = new Uint8Array(memory.buffer);
  bytes.set(tables.buckets, TABLE_BUCKETS);
  bytes.set(tables.entries, TABLE_ENTRIES);
  bytes.set(new Uint8Array(tables.compressed.buffer), TABLE_COMPRESSED);
}
