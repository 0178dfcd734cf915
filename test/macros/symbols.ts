/** One entry of a made-up symbol table. */
export interface SampleSymbol {
  readonly name: string;
  readonly address: bigint;
  readonly sizeBytes?: number;
  /** STT_ type; 2 is a function */
  readonly type?: number;
  /** Section index; 0 is undefined */
  readonly section?: number;
}

/** Appends sections to an ELF file: a symbol table of type SHT_SYMTAB and its strings. */
export function withSymbolTable(elf: Uint8Array, symbols: readonly SampleSymbol[], type = 2): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  const names = symbols.map(({ name }) => encoder.encode(`${name}\0`));
  const stringBytes = 1 + names.reduce((sum, { length }) => sum + length, 0);
  const stringsAt = elf.length;
  const tableAt = Math.ceil((stringsAt + stringBytes) / 8) * 8;
  const headersAt = tableAt + 24 * symbols.length;
  const file = new Uint8Array(headersAt + 3 * 64);
  file.set(elf);
  const view = new DataView(file.buffer);
  let nameAt = 1;
  for (const [index, symbol] of symbols.entries()) {
    file.set(names[index]!, stringsAt + nameAt);
    const at = tableAt + 24 * index;
    view.setUint32(at, nameAt, true);
    view.setUint8(at + 4, 0x10 | (symbol.type ?? 2));
    view.setUint16(at + 6, symbol.section ?? 1, true);
    view.setBigUint64(at + 8, symbol.address, true);
    view.setBigUint64(at + 16, BigInt(symbol.sizeBytes ?? 0), true);
    nameAt += names[index]!.length;
  }
  const section = (index: number, kind: number, offset: number, bytes: number, link: number): void => {
    const at = headersAt + index * 64;
    view.setUint32(at + 4, kind, true);
    view.setBigUint64(at + 24, BigInt(offset), true);
    view.setBigUint64(at + 32, BigInt(bytes), true);
    view.setUint32(at + 40, link, true);
  };
  section(1, type, tableAt, 24 * symbols.length, 2);
  section(2, 3, stringsAt, stringBytes, 0);
  view.setBigUint64(40, BigInt(headersAt), true);
  view.setUint16(58, 64, true);
  view.setUint16(60, 3, true);
  return file;
}

/**
 * A Linux image with a symbol table, as scripts/kallsyms.c lays it out: `relative` entries count from where they
 * stand, others from the image's start.
 */
export function imageWithKallsyms(
  symbols: readonly { readonly kind: string; readonly name: string; readonly offset: number }[],
  relative: boolean,
): Uint8Array<ArrayBuffer> {
  const align = relative ? 4 : 8;
  const out: number[] = new Array<number>(64).fill(0x13);
  const pad = (): void => {
    while (out.length % align !== 0) out.push(0);
  };
  const u32 = (value: number): void => {
    for (let shift = 0; shift < 32; shift += 8) out.push((value >>> shift) & 255);
  };
  // Token 1 stands for "sched_"; characters stand for themselves
  const texts = Array.from({ length: 256 }, (_, token) =>
    token === 1 ? 'sched_' : token >= 33 && token < 127 ? String.fromCharCode(token) : `_${token}`,
  );
  pad();
  u32(symbols.length);
  pad();
  const namesAt = out.length;
  const markers: number[] = [];
  for (const [index, { kind, name }] of symbols.entries()) {
    if (index % 256 === 0) markers.push(out.length - namesAt);
    const tokens = [...`${kind}${name.replaceAll('sched_', '\x01')}`].map((character) => character.charCodeAt(0));
    if (tokens.length >= 128) out.push((tokens.length & 127) | 128, tokens.length >> 7);
    else out.push(tokens.length);
    out.push(...tokens);
  }
  pad();
  for (const marker of markers) u32(marker);
  pad();
  const tableAt = out.length;
  const index: number[] = [];
  for (const text of texts) {
    index.push(out.length - tableAt);
    out.push(...[...text].map((character) => character.charCodeAt(0)), 0);
  }
  pad();
  for (const offset of index) out.push(offset & 255, offset >> 8);
  pad();
  for (const { offset } of symbols) u32(relative ? offset - out.length : offset);
  return Uint8Array.from(out);
}
