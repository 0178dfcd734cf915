// The end of a program for a whole machine: the data section goes out by the UART, and the power off.
import { addi, branchOffset, type Code, jal, type Section, WFI } from './assembler.ts';

/** QEMU's virt machine: ns16550a, SiFive test device */
const UART = 0x1000_0000;
export const UART_THR = UART;
export const UART_LSR = UART + 5;
/** Transmitter and holding register empty */
export const UART_LSR_EMPTY = 0x60;
export const TEST_DEVICE = 0x10_0000;
const POWER_OFF = 0x5555;

const lbu = (rd: number, rs1: number, imm: number) => 0x4003 | (rd << 7) | (rs1 << 15) | (imm << 20);
const andi = (rd: number, rs1: number, imm: number) => 0x7013 | (rd << 7) | (rs1 << 15) | (imm << 20);
const sb = (rs2: number, rs1: number) => 0x0023 | (rs1 << 15) | (rs2 << 20);
const sw = (rs2: number, rs1: number) => 0x2023 | (rs1 << 15) | (rs2 << 20);
const beq = (rs1: number, rs2: number, offset: number) => 0x0063 | (rs1 << 15) | (rs2 << 20) | branchOffset(offset);
const bne = (rs1: number, rs2: number, offset: number) => 0x1063 | (rs1 << 15) | (rs2 << 20) | branchOffset(offset);

/** Gives an address that only the final wfi lies beyond. */
export function emitDump(code: Code, data: Section): number {
  const constant = (value: number) => {
    const at = data.reserve(8);
    data.u64At(at, BigInt(value));
    return at;
  };
  const [uart, device, powerOff, end] = [constant(UART), constant(TEST_DEVICE), constant(POWER_OFF), data.reserve(8)];
  data.u64At(end, BigInt(data.here));
  code.loadX(5, uart);
  code.address(6, data.base);
  code.loadX(7, end);
  const loop = code.here;
  code.word(lbu(8, 5, UART_LSR - UART));
  code.word(andi(8, 8, 0x20));
  code.word(beq(8, 0, loop - code.here));
  code.word(lbu(8, 6, 0));
  code.word(sb(8, 5));
  code.word(addi(6, 6, 1));
  code.word(bne(6, 7, loop - code.here));
  code.loadX(5, device);
  code.loadX(6, powerOff);
  code.word(sw(6, 5));
  const beforeEnd = code.here - 1;
  code.word(WFI);
  code.word(jal(0, -4));
  return beforeEnd;
}
