// Lines of the log, in the shape of QEMU 7.2's for the same items.
import type { Hart } from '../hart/hart.ts';
import { disassemble, F_NAMES, X_NAMES } from '../isa/disassemble.ts';
import * as H from '../kernel/assembly/hart_layout.ts';

const INTERRUPT = 1n << 63n;
/** By cause, as QEMU's target/riscv names them */
const EXCEPTIONS = [
  'misaligned_fetch', 'fault_fetch', 'illegal_instruction', 'breakpoint', 'misaligned_load', 'fault_load',
  'misaligned_store', 'fault_store', 'user_ecall', 'supervisor_ecall', 'hypervisor_ecall', 'machine_ecall',
  'exec_page_fault', 'load_page_fault', 'reserved', 'store_page_fault',
]; // biome-ignore format: a table
const INTERRUPTS = [
  'u_software', 's_software', 'vs_software', 'm_software', 'u_timer', 's_timer', 'vs_timer', 'm_timer',
  'u_external', 's_external', 'vs_external', 'm_external',
]; // biome-ignore format: a table

export const hex16 = (value: bigint): string => BigInt.asUintN(64, value).toString(16).padStart(16, '0');

/** `-d int`: `cause` as in mcause. */
export function trapLine(hart: number, cause: bigint, epc: bigint, tval: bigint): string {
  const async = (cause & INTERRUPT) !== 0n;
  const code = cause & ~INTERRUPT;
  const name = (async ? INTERRUPTS : EXCEPTIONS)[Number(code & 0xffffn)] ?? 'reserved';
  return (
    `riscv_cpu_do_interrupt: hart:${hart}, async:${async ? 1 : 0}, cause:${hex16(code)}, ` +
    `epc:0x${hex16(epc)}, tval:0x${hex16(tval)}, desc=${name}\n`
  );
}

/** `-d mmu`: `detail` is access (1 read, 2 write, 4 execute), privilege << 3, cause << 8. */
export function translationLines(va: bigint, pa: bigint, detail: number): string {
  const access = detail & 7;
  const failed = detail >>> 8 !== 0;
  return (
    `riscv_cpu_tlb_fill ad ${va.toString(16)} rw ${access >> 1} mmu_idx ${(detail >> 3) & 3}\n` +
    `riscv_cpu_tlb_fill address=${va.toString(16)} ret ${failed ? 1 : 0} physical ${hex16(pa)} prot ${failed ? 0 : access}\n`
  );
}

/** `-d guest_errors` */
export function invalidAccessLine(kind: 'read' | 'write', address: number, size: number): string {
  return `Invalid ${kind} at addr 0x${address.toString(16).toUpperCase()}, size ${size}, region '(null)', reason: rejected\n`;
}

/** `-d in_asm`: what stands before the instructions of one piece. */
export function codeHeader(symbol: string, privilege: number): string {
  return `\n----------------\nIN: ${symbol}\nPriv: ${privilege}; Virt: 0\n`;
}

/** One instruction of it: `word` of 16 or 32 bits. */
export function codeLine(pc: bigint, word: number): string {
  const short = (word & 3) !== 3;
  const digits = (short ? word & 0xffff : word >>> 0).toString(16).padStart(short ? 4 : 8, '0');
  const text = disassemble(word, pc).replace(/^c: /, '');
  const [name, ...operands] = text.split(' ');
  return `0x${hex16(pc)}:  ${digits.padEnd(18)}${operands.length === 0 ? name : name!.padEnd(24)}${operands.join(' ')}\n`;
}

/** `-d exec`: QEMU's block is one instruction here; there is no host code to point at. */
export function executionLine(hart: number, pc: bigint, privilege: number, symbol: string): string {
  return `Trace ${hart}: 0x0 [00000000/${hex16(pc)}/${privilege.toString(16).padStart(8, '0')}/00000001] ${symbol}\n`;
}

const DUMPED_CSRS = [
  ['mstatus', H.HART_MSTATUS], ['mie', H.HART_MIE], ['mideleg', H.HART_MIDELEG], ['medeleg', H.HART_MEDELEG],
  ['mtvec', H.HART_MTVEC], ['stvec', H.HART_STVEC], ['mepc', H.HART_MEPC], ['sepc', H.HART_SEPC],
  ['mcause', H.HART_MCAUSE], ['scause', H.HART_SCAUSE], ['mtval', H.HART_MTVAL], ['stval', H.HART_STVAL],
  ['mscratch', H.HART_MSCRATCH], ['sscratch', H.HART_SSCRATCH], ['satp', H.HART_SATP],
] as const; // biome-ignore format: a table

/** `-d cpu`: all registers of a hart that stands. */
export function registerDump(hart: Hart, floats: boolean): string {
  const line = (name: string, value: bigint): string => ` ${name.padEnd(8)} ${hex16(value)}`;
  const rows = [line('pc', hart.pc), line('mhartid', BigInt(hart.id))];
  for (const [name, offset] of DUMPED_CSRS) rows.push(line(name, hart.get64(offset)));
  const registers = (prefix: string, names: readonly string[], value: (index: number) => bigint): void => {
    for (let row = 0; row < 32; row += 4) {
      const cells = [row, row + 1, row + 2, row + 3];
      rows.push(cells.map((index) => line(`${prefix}${index}/${names[index]}`, value(index))).join(''));
    }
  };
  registers('x', X_NAMES, (index) => hart.x(index));
  if (floats) registers('f', F_NAMES, (index) => hart.f(index));
  return `${rows.join('\n')}\n`;
}
