// What a translated function is told, and what whoever writes one is.

/** Parameters of every translated function */
export const PC = 0;
export const ARGUMENT = 1;
export const HART = 2;
/** The argument: entry number, pages from the region's first page to the entry's (signed byte), depth that is left */
export const ARGUMENT_PAGES_SHIFT = 8;
export const ARGUMENT_DEPTH_SHIFT = 16;

export interface EntryPoint {
  readonly at: number;
  readonly number: number;
  /** The function does nothing with less fuel */
  readonly leastFuel: number;
}

/** How a call reaches another region: as a function of the same module, or by the table */
export type Link =
  | { readonly kind: 'direct'; readonly index: number }
  | { readonly kind: 'table'; readonly index: number };

/** What the machine and the module give the functions that are written */
export interface WriterContext {
  /** Constant address of the hart, or undefined where the same code serves several: it is a parameter then */
  readonly hart: number | undefined;
  readonly dirtyOffset: number;
  readonly fusesMultiplyAdd: boolean;
  readonly strongOrder: boolean;
  /** Registers whose pages are looked for in the hart's window first (windows.ts) */
  readonly windowRegisters: number;
  /** Index of a function of the kernel or a helper */
  call(name: string): number;
  /** Type index of a translated function */
  readonly functionType: number;
  /** The code key of a page of the region */
  keyOf(pageNumber: number): number;
  link(target: number): Link | undefined;
  /** Address of a new table of bytes in memory, or undefined where there is no room */
  byteTable(bytes: Uint8Array): number | undefined;
}
