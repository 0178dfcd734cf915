import { Cursor, WireError } from '../bytes/mod.ts';
import { MAX_SYMBOL_NAME_BYTES, MAX_SYMBOL_TEXT, MAX_SYMBOLS } from './limits.ts';
import { type GuestSymbol, printableName } from './symbol.ts';

// ELF-64 section headers and symbol table (System V gABI, "Sections", "Symbol Table").

const ELF_MAGIC = 0x7f45_4c46;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const EM_RISCV = 243;
const SECTION_HEADER_BYTES = 64;
const SYMBOL_BYTES = 24;
const SHT_SYMTAB = 2;
const SHT_DYNSYM = 11;
const SHN_UNDEF = 0;
const STT_NOTYPE = 0;
const STT_FUNC = 2;
/** Linkers make some tens; a kernel with debug information some hundreds */
const MAX_SECTIONS = 65_535;

interface Section {
  readonly type: number;
  readonly offset: number;
  readonly sizeBytes: number;
  readonly link: number;
}

/**
 * Functions and labels of a 64-bit little-endian RISC-V ELF file: of its symbol table, or the dynamic one where it
 * was stripped. Empty where it has neither.
 * @throws WireError
 */
export function decodeElfSymbols(file: Uint8Array): GuestSymbol[] {
  const header = new Cursor(file, 'ELF header');
  header.expectU32(ELF_MAGIC, 'magic');
  header.expectU8(ELFCLASS64, 'class');
  header.expectU8(ELFDATA2LSB, 'byte order');
  header.skip(10 + 2, 'identification, type');
  const machine = header.u16le('machine');
  if (machine !== EM_RISCV) throw header.error('ERR_WIRE_VALUE', `Cannot read symbols: machine ${machine}, not RISC-V`);
  header.skip(4 + 8 + 8, 'version, entry, program headers');
  const sectionOffset = header.u64le('section header offset');
  header.skip(4 + 2 + 2 + 2, 'flags, sizes, program header count');
  const sectionBytes = header.u16le('section header size');
  const count = header.u16le('section header count');
  header.skip(2, 'section name index');
  if (count === 0) return [];
  if (sectionBytes !== SECTION_HEADER_BYTES || count > MAX_SECTIONS) {
    throw header.error('ERR_WIRE_VALUE', `Cannot read symbols: ${count} section headers of ${sectionBytes} bytes`);
  }
  const sections = decodeSections(file, sectionOffset, count);
  const table = sections.find(({ type }) => type === SHT_SYMTAB) ?? sections.find(({ type }) => type === SHT_DYNSYM);
  if (table === undefined) return [];
  const strings = sections[table.link];
  if (strings === undefined) throw header.error('ERR_WIRE_VALUE', `Cannot read symbols: no section ${table.link}`);
  return decodeTable(slice(file, table, 'symbol table'), slice(file, strings, 'string table'));
}

function decodeSections(file: Uint8Array, offset: bigint, count: number): Section[] {
  const cursor = new Cursor(file, 'ELF section headers');
  cursor.skip(safe(offset), 'offset');
  return Array.from({ length: count }, () => {
    cursor.skip(4, 'name');
    const type = cursor.u32le('type');
    cursor.skip(8 + 8, 'flags, address');
    const at = safe(cursor.u64le('offset'));
    const sizeBytes = safe(cursor.u64le('size'));
    const link = cursor.u32le('link');
    cursor.skip(4 + 8 + 8, 'info, alignment, entry size');
    return { type, offset: at, sizeBytes, link };
  });
}

function slice(file: Uint8Array, { offset, sizeBytes }: Section, what: string): Uint8Array {
  const cursor = new Cursor(file, `ELF ${what}`);
  cursor.skip(offset, 'offset');
  return cursor.bytes(sizeBytes, 'contents');
}

function decodeTable(table: Uint8Array, strings: Uint8Array): GuestSymbol[] {
  const count = Math.floor(table.length / SYMBOL_BYTES);
  const cursor = new Cursor(table, 'ELF symbol');
  if (count > MAX_SYMBOLS)
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot read ${count} symbols: limit is ${MAX_SYMBOLS}`);
  const symbols: GuestSymbol[] = [];
  let textLength = 0;
  for (let index = 0; index < count; index++) {
    const nameOffset = cursor.u32le('name');
    const info = cursor.u8('info');
    cursor.skip(1, 'other');
    const section = cursor.u16le('section');
    const address = cursor.u64le('value');
    const size = cursor.u64le('size');
    const type = info & 15;
    if (section === SHN_UNDEF || (type !== STT_FUNC && type !== STT_NOTYPE)) continue;
    const name = textAt(strings, nameOffset);
    textLength += name.length;
    if (textLength > MAX_SYMBOL_TEXT) {
      throw cursor.error('ERR_WIRE_LIMIT', `Cannot read names of over ${MAX_SYMBOL_TEXT} characters in all`);
    }
    // Mapping symbols ($x, $d) and local labels (.L1) name no function (RISC-V ELF psABI, "Mapping Symbol")
    if (name === '' || name.startsWith('$') || name.startsWith('.L')) continue;
    symbols.push({ name, address, sizeBytes: size < 1n << 32n ? Number(size) : 0 });
  }
  return symbols;
}

/** Latin-1 of the string that begins there; names that are too long or have no end are refused. */
function textAt(strings: Uint8Array, offset: number): string {
  const cursor = new Cursor(strings, 'ELF string');
  cursor.skip(offset, 'offset');
  const rest = cursor.rest();
  const end = rest.indexOf(0);
  if (end < 0 || end > MAX_SYMBOL_NAME_BYTES) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot read a name: longer than ${MAX_SYMBOL_NAME_BYTES} bytes`);
  }
  return printableName(String.fromCharCode.apply(null, rest.subarray(0, end) as unknown as number[]));
}

function safe(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new WireError('ERR_WIRE_LIMIT', `Cannot accept ELF: 0x${value.toString(16)} is beyond 2^53`, {
      message: 'ELF sections',
    });
  }
  return Number(value);
}
