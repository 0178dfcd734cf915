export { decodeElfSymbols } from './elf_symbols.ts';
export { decodeKallsyms, type Kallsyms } from './kallsyms.ts';
export { MAX_SYMBOL_FILE_BYTES, MAX_SYMBOLS } from './limits.ts';
export type { GuestSymbol } from './symbol.ts';
export { decodeSystemMap } from './system_map.ts';
