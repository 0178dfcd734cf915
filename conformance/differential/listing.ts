// A program as text: what a person reads who looks for the bug.
import { disassemble } from '../../emulator/isa/mod.ts';
import { assembleProgram } from './image.ts';
import { functionLabel } from './lower.ts';
import type { ProgramPlan } from './nodes.ts';

/** Legs, then every function's instructions with their addresses. The entry's register loads are left out. */
export function listing(program: ProgramPlan): string {
  const { sections, labels, starts } = assembleProgram(program);
  const halfword = (at: number): number => {
    const { base, bytes } = sections.find((section) => at >= section.base && at < section.base + section.bytes.length)!;
    return bytes[at - base]! | (bytes[at - base + 1]! << 8);
  };
  const names = new Map([...labels].map(([name, address]) => [address, name]));
  const lines = [
    `seed ${program.seed}, slot ${program.slot}, frm ${program.frm}`,
    ...program.legs.map(
      ({ mode, paging, space, medeleg, sum, mxr }) =>
        `leg ${mode} ${paging ? `Sv39 space ${space}` : 'bare'} medeleg 0x${medeleg.toString(16)} sum ${sum} mxr ${mxr}`,
    ),
  ];
  const first = labels.get(functionLabel(0)) ?? 0;
  for (const at of starts) {
    if (at < first) continue;
    const name = names.get(at);
    if (name !== undefined) lines.push(`${name}:`);
    const low = halfword(at);
    const word = (low & 3) === 3 ? ((halfword(at + 2) << 16) | low) >>> 0 : low;
    lines.push(
      `  ${at.toString(16)}  ${word
        .toString(16)
        .padStart((low & 3) === 3 ? 8 : 4, '0')
        .padEnd(8)}  ${disassemble(word, BigInt(at))}`,
    );
  }
  return `${lines.join('\n')}\n`;
}
