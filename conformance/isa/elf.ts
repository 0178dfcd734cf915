// A static ELF64 executable for RISC-V: header, program headers, segments. As small as QEMU's loader takes it.

export interface Segment {
  readonly address: number;
  readonly bytes: Uint8Array;
}

const HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
const PAGE = 4096;
const MACHINE_RISCV = 243;
/** RVC, double-float ABI */
const FLAGS = 0x5;

/** Every segment is readable, writable and executable, and page-aligned in memory */
export function writeElf(entry: number, segments: readonly Segment[]): Uint8Array {
  const offsets: number[] = [];
  let end = Math.ceil((HEADER_BYTES + segments.length * PROGRAM_HEADER_BYTES) / PAGE) * PAGE;
  for (const { bytes } of segments) {
    offsets.push(end);
    end += Math.ceil(bytes.length / PAGE) * PAGE;
  }
  const file = new Uint8Array(end);
  const view = new DataView(file.buffer);
  const u64 = (offset: number, value: number) => view.setBigUint64(offset, BigInt(value), true);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // class 64, little-endian, version 1
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, MACHINE_RISCV, true);
  view.setUint32(20, 1, true);
  u64(24, entry);
  u64(32, HEADER_BYTES); // program headers
  view.setUint32(48, FLAGS, true);
  view.setUint16(52, HEADER_BYTES, true);
  view.setUint16(54, PROGRAM_HEADER_BYTES, true);
  view.setUint16(56, segments.length, true);
  for (const [index, { address, bytes }] of segments.entries()) {
    const header = HEADER_BYTES + index * PROGRAM_HEADER_BYTES;
    view.setUint32(header, 1, true); // PT_LOAD
    view.setUint32(header + 4, 7, true); // RWX
    u64(header + 8, offsets[index]!);
    u64(header + 16, address);
    u64(header + 24, address);
    u64(header + 32, bytes.length);
    u64(header + 40, bytes.length);
    u64(header + 48, PAGE);
    file.set(bytes, offsets[index]!);
  }
  return file;
}
