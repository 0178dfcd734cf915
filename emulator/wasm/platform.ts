/** The part of the WebAssembly JavaScript interface that we use; every browser and Node have it. */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer;
}
export type WasmModule = object;
export interface WasmInstance {
  // Functions are checked against their declared types by who instantiates
  readonly exports: Record<string, unknown>;
}
/** A table of functions; an empty place is null */
export interface WasmTable {
  readonly length: number;
  get(index: number): unknown;
  set(index: number, value: unknown): void;
  /** New places hold `value` */
  grow(count: number, value?: unknown): number;
}
interface WasmApi {
  Memory: new (descriptor: { initial: number; maximum: number; shared: true }) => WasmMemory;
  Module: new (bytes: Uint8Array) => WasmModule;
  Instance: new (module: WasmModule, imports: Record<string, Record<string, unknown>>) => WasmInstance;
  Table: new (descriptor: { element: 'anyfunc'; initial: number; maximum?: number }) => WasmTable;
  validate(bytes: Uint8Array): boolean;
  Global: new (descriptor: { value: 'i32' | 'i64' | 'f64'; mutable: boolean }, value: number | bigint) => object;
}

export const wasm: WasmApi = (globalThis as unknown as { WebAssembly: WasmApi }).WebAssembly;
