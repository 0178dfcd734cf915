import { Writer } from '../../protocols/bytes/mod.ts';
import { BOOT_ROM } from './memory_map.ts';

/** `struct fw_dynamic_info` of OpenSBI (include/sbi/fw_dynamic.h): magic "OSBI", version 2 */
const FW_DYNAMIC_MAGIC = 0x4942_534fn;
const FW_DYNAMIC_VERSION = 2n;
const NEXT_MODE_S = 1n;

// Registers and instructions that the reset vector needs (unprivileged spec, chapter "RV32/64G instruction set listings")
const T0 = 5;
const A0 = 10;
const A1 = 11;
const A2 = 12;
const MHARTID = 0xf14;
const auipc = (rd: number) => 0x17 | (rd << 7);
const addi = (rd: number, rs1: number, immediate: number) => 0x13 | (rd << 7) | (rs1 << 15) | (immediate << 20);
const ld = (rd: number, offset: number, rs1: number) => 0x3003 | (rd << 7) | (rs1 << 15) | (offset << 20);
const csrr = (rd: number, csr: number) => (0x2073 | (rd << 7) | (csr << 20)) >>> 0;
const jr = (rs1: number) => 0x67 | (rs1 << 15);

/** Offsets in the ROM: six instructions, two addresses, then the firmware's information */
const START_ADDRESS = 0x18;
const DTB_ADDRESS = 0x20;
const FW_DYNAMIC_INFO = 0x28;

export interface ResetVector {
  /** Where M-mode begins */
  readonly start: number;
  readonly dtb: number;
  /** Where firmware should continue in S-mode; 0 where there is nothing */
  readonly next: number;
}

/**
 * What lies at the reset address: every hart jumps to `start` with a0 its id, a1 the device tree and a2 what
 * OpenSBI's fw_dynamic wants to know, each where QEMU has it.
 */
export function buildBootRom(vector: ResetVector): Uint8Array<ArrayBuffer> {
  const rom = new Writer(128)
    .u32le(auipc(T0))
    .u32le(addi(A2, T0, FW_DYNAMIC_INFO))
    .u32le(csrr(A0, MHARTID))
    .u32le(ld(A1, DTB_ADDRESS, T0))
    .u32le(ld(T0, START_ADDRESS, T0))
    .u32le(jr(T0))
    .u64le(BigInt(vector.start))
    .u64le(BigInt(vector.dtb))
    .u64le(FW_DYNAMIC_MAGIC)
    .u64le(FW_DYNAMIC_VERSION)
    .u64le(BigInt(vector.next))
    .u64le(NEXT_MODE_S)
    // No options; boot hart 0
    .u64le(0n)
    .u64le(0n)
    .finish();
  if (rom.length > BOOT_ROM.size) throw new RangeError('Cannot fit the reset vector into its ROM');
  return rom;
}
