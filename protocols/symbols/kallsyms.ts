import { Cursor } from '../bytes/mod.ts';
import { MAX_SYMBOL_NAME_BYTES, MAX_SYMBOL_TEXT, MAX_SYMBOLS, MAX_UNPACKED_BYTES } from './limits.ts';
import { type GuestSymbol, printableName } from './symbol.ts';

// The symbol table that Linux carries in its own image (scripts/kallsyms.c writes it, kernel/kallsyms.c reads it):
//
//   num_syms      u32
//   names         per symbol: length (one byte, two where it is 128 or more), then token numbers; the first
//                 character of the expanded text is the kind, as in nm
//   markers       u32 per 256 symbols: offset of that name
//   token_table   256 texts, each with a NUL
//   token_index   u16 per token: its offset in the table
//   offsets       i32 per symbol: from where the entry itself stands; in older kernels from relative_base,
//   relative_base u64, which follows them there
//
// Nothing points at the tables, so they are searched: a token's number is the character that it stands for where
// the character is used at all, so the texts "0" to "9" stand in a row.

const TOKENS = 256;
const FIRST_DIGIT = 0x30;
const SYMBOLS_PER_MARKER = 256;
/** Tables begin at multiples of 8 in older kernels, of 4 in newer ones */
const ALIGNMENTS = [4, 8];
/** "0" NUL "1" NUL … "9" NUL */
const DIGITS = Uint8Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? FIRST_DIGIT + i / 2 : 0));
/** Places that look like the digits but are none are passed over, this often */
const MAX_CANDIDATES = 64;

/** What the search may still cost: an image can be made so that a table seems to begin at every place of it. */
interface Budget {
  unpackedBytes: number;
}

export interface Kallsyms {
  /** Code symbols; addresses are offsets from the start of the image */
  readonly symbols: readonly GuestSymbol[];
}

/**
 * Finds and reads the symbol table of a Linux image, decompressed. Undefined where there is none that is whole:
 * a kernel without CONFIG_KALLSYMS, or one of another layout.
 */
export function decodeKallsyms(image: Uint8Array): Kallsyms | undefined {
  const budget: Budget = { unpackedBytes: MAX_UNPACKED_BYTES };
  let at = -1;
  for (let candidate = 0; candidate < MAX_CANDIDATES && budget.unpackedBytes > 0; candidate++) {
    at = indexOf(image, DIGITS, at + 1);
    if (at < 0) return undefined;
    for (const alignment of ALIGNMENTS) {
      const found = tryTable(image, at, alignment, budget);
      if (found !== undefined) return found;
    }
  }
  return undefined;
}

function tryTable(image: Uint8Array, digits: number, alignment: number, budget: Budget): Kallsyms | undefined {
  const tokens = findTokens(image, digits, alignment);
  if (tokens === undefined) return undefined;
  const markers = findMarkers(image, tokens.start);
  if (markers === undefined) return undefined;
  const names = findNames(image, markers, tokens.texts, budget);
  if (names === undefined) return undefined;
  const offsets = findOffsets(image, tokens.end, names.length, alignment);
  if (offsets === undefined) return undefined;
  const symbols: GuestSymbol[] = [];
  for (const [index, name] of names.entries()) {
    const address = offsets[index]!;
    if ('tTwW'.includes(name[0]!) && address >= 0) {
      symbols.push({ name: printableName(name.slice(1)), address: BigInt(address), sizeBytes: 0 });
    }
  }
  return symbols.length === 0 ? undefined : { symbols };
}

/** The tokens' texts, where their table starts, and where the index that proves it ends. */
function findTokens(
  image: Uint8Array,
  digits: number,
  alignment: number,
): { texts: string[]; start: number; end: number } | undefined {
  let start = digits;
  for (let token = 0; token < FIRST_DIGIT; token++) {
    if (start < 1) return undefined;
    start = image.lastIndexOf(0, start - 2) + 1;
  }
  const texts: string[] = [];
  const offsets: number[] = [];
  let at = start;
  while (texts.length < TOKENS) {
    const end = image.indexOf(0, at);
    if (end < 0 || end - at > MAX_SYMBOL_NAME_BYTES) return undefined;
    offsets.push(at - start);
    texts.push(text(image, at, end));
    at = end + 1;
  }
  const index = alignUp(at, alignment);
  const cursor = cursorAt(image, index, TOKENS * 2);
  if (cursor === undefined || offsets.some((offset) => cursor.u16le('token index') !== offset)) return undefined;
  return { texts, start, end: index + TOKENS * 2 };
}

/** Going back from the token table: offsets that fall to zero. */
function findMarkers(image: Uint8Array, end: number): { start: number; count: number; last: number } | undefined {
  const word = (at: number): number | undefined => cursorAt(image, at, 4)?.u32le('marker');
  let at = (end & ~3) - 4;
  // Padding to the token table
  if (word(at) === 0) at -= 4;
  const last = word(at);
  let before = last;
  let count = 1;
  while (before !== undefined && before !== 0) {
    at -= 4;
    const value = word(at);
    if (value === undefined || value >= before || ++count > MAX_SYMBOLS / SYMBOLS_PER_MARKER) return undefined;
    before = value;
  }
  return last === undefined || before === undefined ? undefined : { start: at, count, last };
}

/** The names end where the markers start; their number stands before the first. Gives the expanded texts. */
function findNames(
  image: Uint8Array,
  markers: { start: number; count: number; last: number },
  tokens: readonly string[],
  budget: Budget,
): string[] | undefined {
  // The last marker's names, at most 256, and padding lie between
  const highest = markers.start - markers.last;
  const lowest = Math.max(4, highest - SYMBOLS_PER_MARKER * (MAX_SYMBOL_NAME_BYTES + 2));
  for (let names = highest & ~3; names >= lowest && budget.unpackedBytes > 0; names -= 4) {
    // The count has 4 bytes; where tables begin at multiples of 8 there are 4 more behind it
    for (const gap of [4, 8]) {
      const count = cursorAt(image, names - gap, 4)?.u32le('number of symbols') ?? 0;
      if (Math.ceil(count / SYMBOLS_PER_MARKER) !== markers.count || count > MAX_SYMBOLS) continue;
      const found = readNames(image, { start: names, count, end: markers.start }, tokens, budget);
      if (found !== undefined) return found;
    }
  }
  return undefined;
}

function readNames(
  image: Uint8Array,
  { start, count, end }: { start: number; count: number; end: number },
  tokens: readonly string[],
  budget: Budget,
): string[] | undefined {
  const cursor = new Cursor(image.subarray(start, end), 'kallsyms names');
  const names: string[] = [];
  let textLength = 0;
  for (let index = 0; index < count; index++) {
    if (cursor.remaining < 2) return undefined;
    let length = cursor.u8('length');
    if (length >= 128) length = (length & 127) | (cursor.u8('length') << 7);
    if (length === 0 || length > cursor.remaining || length > MAX_SYMBOL_NAME_BYTES) return undefined;
    budget.unpackedBytes -= length;
    if (budget.unpackedBytes < 0) return undefined;
    let name = '';
    for (const token of cursor.bytes(length, 'tokens')) name += tokens[token]!;
    if (name.length < 2 || name.length > MAX_SYMBOL_NAME_BYTES) return undefined;
    textLength += name.length;
    if (textLength > MAX_SYMBOL_TEXT) return undefined;
    names.push(name);
  }
  // Only padding is left before the markers
  return cursor.remaining < 8 ? names : undefined;
}

/** Offsets from the image's start, of all symbols; below 0 what is no address in it. */
function findOffsets(image: Uint8Array, after: number, count: number, alignment: number): number[] | undefined {
  const start = alignUp(after, alignment);
  const cursor = cursorAt(image, start, count * 4);
  if (cursor === undefined) return undefined;
  const raw = Array.from({ length: count }, () => cursor.u32le('offset') | 0);
  // From the entry itself: the first symbol is the image's start, far below the table
  if (raw[0]! < 0 && raw[0]! >= -image.length) return raw.map((offset, index) => start + index * 4 + offset);
  return raw[0] === 0 ? raw : undefined;
}

function cursorAt(image: Uint8Array, offset: number, bytes: number): Cursor | undefined {
  if (offset < 0 || offset > image.length - bytes) return undefined;
  const cursor = new Cursor(image, 'kallsyms');
  cursor.skip(offset, 'offset');
  return cursor;
}

function indexOf(haystack: Uint8Array, needle: Uint8Array, from: number): number {
  for (let at = haystack.indexOf(needle[0]!, from); at >= 0; at = haystack.indexOf(needle[0]!, at + 1)) {
    if (needle.every((byte, index) => haystack[at + index] === byte)) return at;
  }
  return -1;
}

function text(image: Uint8Array, start: number, end: number): string {
  let out = '';
  for (const byte of image.subarray(start, end)) out += String.fromCharCode(byte);
  return out;
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
