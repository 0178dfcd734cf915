import type { Case, Program } from './program.ts';

const hex = (bytes: Uint8Array, at: number): string =>
  Buffer.from(bytes.subarray(at, at + 8))
    .reverse()
    .toString('hex');

export interface Difference {
  readonly at: Case;
  readonly text: string;
}

/** The cases whose data differ, each once, with the first doublewords that do. */
export function differencesOf(program: Program, expected: Uint8Array, actual: Uint8Array): Difference[] {
  const { base } = program.data;
  const differences: Difference[] = [];
  for (const at of program.cases) {
    const words: string[] = [];
    for (let address = at.from; address < at.to; address += 8) {
      const offset = address - base;
      const [want, got] = [hex(expected, offset), hex(actual, offset)];
      if (want !== got) words.push(`+${address - at.from}: 0x${got}, expected 0x${want}`);
    }
    if (words.length === 0) continue;
    const word = `0x${at.word.toString(16)}`;
    differences.push({ at, text: `${at.name} ${word} ${at.operands} → ${words.slice(0, 4).join('; ')}` });
  }
  return differences;
}
