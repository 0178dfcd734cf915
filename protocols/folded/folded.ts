import { Cursor } from '../bytes/mod.ts';
import { MAX_FOLDED_BYTES, MAX_FRAME_LENGTH, MAX_FRAMES, MAX_STACKS } from './limits.ts';

// Folded stacks, the text that flame graph tools take (Brendan Gregg's stackcollapse): one stack a line, frames from
// the root with `;` between, a space, and how often it was seen.

export interface FoldedStack {
  /** From the root */
  readonly frames: readonly string[];
  readonly count: number;
}

/** `;`, line ends and control characters cannot be in a frame: they become `_`. */
export function encodeFolded(stacks: readonly FoldedStack[]): Uint8Array {
  const lines = stacks.map(({ frames, count }) => `${frames.map(printable).join(';')} ${count}\n`);
  return new TextEncoder().encode(lines.join(''));
}

function printable(frame: string): string {
  const text = [...frame.slice(0, MAX_FRAME_LENGTH)]
    .map((character) => (character === ';' || character < ' ' || character === '\x7f' ? '_' : character))
    .join('');
  return text === '' ? '_' : text;
}

/** @throws WireError */
export function decodeFolded(bytes: Uint8Array): FoldedStack[] {
  const cursor = new Cursor(bytes, 'folded stacks');
  const text = cursor.utf8(bytes.length, MAX_FOLDED_BYTES, 'text');
  if (text === '') return [];
  if (!text.endsWith('\n'))
    throw cursor.error('ERR_WIRE_TRUNCATED', 'Cannot read folded stacks: the last line has no end');
  const lines = text.slice(0, -1).split('\n');
  if (lines.length > MAX_STACKS) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot read ${lines.length} folded stacks: limit is ${MAX_STACKS}`);
  }
  return lines.map((line, index) => {
    const refuse = (found: string) => cursor.error('ERR_WIRE_VALUE', `Cannot read folded stack ${index + 1}: ${found}`);
    const space = line.lastIndexOf(' ');
    const digits = line.slice(space + 1);
    if (space <= 0 || !/^[1-9][0-9]{0,14}$/.test(digits)) throw refuse('expected frames, a space and a count');
    const frames = line.slice(0, space).split(';');
    if (frames.length > MAX_FRAMES) throw refuse(`${frames.length} frames, limit is ${MAX_FRAMES}`);
    for (const frame of frames) {
      if (frame === '' || frame.length > MAX_FRAME_LENGTH) throw refuse(`a frame of ${frame.length} characters`);
      if ([...frame].some((character) => character < ' ' || character === '\x7f')) throw refuse('a control character');
    }
    return { frames, count: Number(digits) };
  });
}
