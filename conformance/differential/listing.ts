// A program as text: what a person reads who looks for the bug.
import { disassemble } from '../../emulator/isa/mod.ts';
import { assembleProgram } from './image.ts';
import { functionLabel } from './lower.ts';
import type { ProgramPlan } from './nodes.ts';

/** Legs, then every function's instructions with their addresses. The entry's register loads are left out. */
export function listing(program: ProgramPlan): string {
  const { base, bytes, labels, starts } = assembleProgram(program);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const names = new Map([...labels].map(([name, address]) => [address, name]));
  const lines = [
    `seed ${program.seed}, slot ${program.slot}, frm ${program.frm}`,
    ...program.legs.map(
      ({ mode, paging, space, medeleg, sum, mxr }) =>
        `leg ${mode} ${paging ? `Sv39 space ${space}` : 'bare'} medeleg 0x${medeleg.toString(16)} sum ${sum} mxr ${mxr}`,
    ),
  ];
  const first = labels.get(functionLabel(0)) ?? base;
  for (const at of starts) {
    if (at < first) continue;
    const name = names.get(at);
    if (name !== undefined) lines.push(`${name}:`);
    const low = view.getUint16(at - base, true);
    const word = (low & 3) === 3 ? ((view.getUint16(at - base + 2, true) << 16) | low) >>> 0 : low;
    lines.push(
      `  ${at.toString(16)}  ${word
        .toString(16)
        .padStart((low & 3) === 3 ? 8 : 4, '0')
        .padEnd(8)}  ${disassemble(word, BigInt(at))}`,
    );
  }
  return `${lines.join('\n')}\n`;
}
