import { type ByteSource, Cursor, readHead, readPart, WireError, type WireErrorCode } from '../bytes/mod.ts';

// ELF-64 (System V gABI) for RISC-V (RISC-V ELF psABI), as far as loading a program needs it.

/** `0x7f 'E' 'L' 'F'`, big-endian */
export const ELF_MAGIC = 0x7f45_4c46;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const ET_EXEC = 2;
const ET_DYN = 3;
const EM_RISCV = 243;
const PT_LOAD = 1;
const HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;

export const ELF_LIMITS = Object.freeze({
  /** Linkers make under 20 */
  programHeaders: 256,
});

/** What must be in memory before the program starts; checked to be inside the file and apart from its siblings. */
export interface ElfSegment {
  /** Where it goes, physical */
  readonly physicalAddress: number;
  /** Unsigned 64 bits: kernels are linked at the top of the address space */
  readonly virtualAddress: bigint;
  /** Where its bytes are in the file */
  readonly fileOffset: number;
  readonly fileBytes: number;
  /** Zeroes follow the bytes up to this size; at least `fileBytes` */
  readonly memoryBytes: number;
}

export interface ElfProgram {
  /** As the file says: virtual, unsigned 64 bits */
  readonly entry: bigint;
  /** `entry` where the program is loaded; the same unless virtual and physical addresses differ */
  readonly physicalEntry: number;
  /** PT_LOAD with a size, by physical address */
  readonly segments: readonly ElfSegment[];
}

export function isElf(file: Uint8Array): boolean {
  return file.length >= 4 && new Cursor(file, 'ELF').u32('magic') === ELF_MAGIC;
}

/**
 * Reads the program headers of a 64-bit little-endian RISC-V executable. Sections, symbols and relocations are
 * not looked at. Segments must lie inside the file and must not overlap in memory; they are not read.
 *
 * @throws WireError
 */
export function decodeElf(file: ByteSource): ElfProgram {
  const header = new Cursor(readHead(file, HEADER_BYTES), 'ELF header');
  header.expectU32(ELF_MAGIC, 'magic');
  header.expectU8(ELFCLASS64, 'class');
  header.expectU8(ELFDATA2LSB, 'byte order');
  header.expectU8(1, 'identification version');
  header.skip(9, 'identification');
  const type = header.u16le('type');
  if (type !== ET_EXEC && type !== ET_DYN) throw refusal('ERR_WIRE_VALUE', `type ${type} is not executable`, 16);
  const machine = header.u16le('machine');
  if (machine !== EM_RISCV) throw refusal('ERR_WIRE_VALUE', `machine ${machine}, expected ${EM_RISCV} (RISC-V)`, 18);
  const version = header.u32le('version');
  if (version !== 1) throw refusal('ERR_WIRE_VALUE', `version ${version}, expected 1`, 20);
  const entry = header.u64le('entry');
  const programOffset = header.u64le('program header offset');
  header.skip(8 + 4, 'section header offset, flags');
  const headerBytes = header.u16le('header size');
  const programHeaderBytes = header.u16le('program header size');
  const count = header.u16le('program header count');
  if (headerBytes < HEADER_BYTES) throw refusal('ERR_WIRE_VALUE', `header of ${headerBytes} bytes`, 52);
  if (programHeaderBytes !== PROGRAM_HEADER_BYTES) {
    throw refusal('ERR_WIRE_VALUE', `program headers of ${programHeaderBytes} bytes, expected 56`, 54);
  }
  if (count > ELF_LIMITS.programHeaders) {
    throw refusal('ERR_WIRE_LIMIT', `${count} program headers, limit is ${ELF_LIMITS.programHeaders}`, 56);
  }
  const table = safe(programOffset, 'program header offset');
  const cursor = new Cursor(
    readPart(file, table, count * PROGRAM_HEADER_BYTES, 'ELF program headers'),
    'ELF program headers',
  );
  const segments: ElfSegment[] = [];
  for (let index = 0; index < count; index++) {
    const segment = decodeSegment(cursor, file.length);
    if (segment !== undefined) segments.push(segment);
  }
  if (segments.length === 0) throw refusal('ERR_WIRE_VALUE', 'nothing to load', 0);
  segments.sort((a, b) => a.physicalAddress - b.physicalAddress);
  for (let index = 1; index < segments.length; index++) {
    const before = segments[index - 1]!;
    const segment = segments[index]!;
    if (before.physicalAddress + before.memoryBytes > segment.physicalAddress) {
      throw refusal('ERR_WIRE_VALUE', `segments overlap at 0x${segment.physicalAddress.toString(16)}`, 0);
    }
  }
  return { entry, physicalEntry: physical(entry, segments), segments };
}

function decodeSegment(cursor: Cursor, ofFile: number): ElfSegment | undefined {
  const at = cursor.offset;
  const type = cursor.u32le('type');
  cursor.skip(4, 'flags');
  const rawOffset = cursor.u64le('offset');
  const rawVirtual = cursor.u64le('virtual address');
  const rawPhysical = cursor.u64le('physical address');
  const rawFileBytes = cursor.u64le('file size');
  const rawMemoryBytes = cursor.u64le('memory size');
  cursor.skip(8, 'alignment');
  if (type !== PT_LOAD || rawMemoryBytes === 0n) return undefined;

  const fileOffset = safe(rawOffset, 'segment offset');
  const physicalAddress = safe(rawPhysical, 'physical address');
  const fileBytes = safe(rawFileBytes, 'file size');
  const memoryBytes = safe(rawMemoryBytes, 'memory size');
  if (fileBytes > memoryBytes) {
    throw refusal('ERR_WIRE_VALUE', `a segment has ${fileBytes} bytes for ${memoryBytes} of memory`, at);
  }
  if (fileOffset > ofFile || fileBytes > ofFile - fileOffset) {
    throw refusal('ERR_WIRE_TRUNCATED', `a segment ends at ${fileOffset + fileBytes}, file has ${ofFile}`, at);
  }
  if (!Number.isSafeInteger(physicalAddress + memoryBytes)) {
    throw refusal('ERR_WIRE_LIMIT', 'a segment ends beyond the address space', at);
  }
  return {
    physicalAddress,
    virtualAddress: rawVirtual,
    fileOffset,
    fileBytes,
    memoryBytes,
  };
}

/** An entry inside a segment's virtual range moves with the segment. */
function physical(entry: bigint, segments: readonly ElfSegment[]): number {
  const segment = segments.find(
    ({ virtualAddress, memoryBytes }) => entry >= virtualAddress && entry - virtualAddress < BigInt(memoryBytes),
  );
  return segment === undefined
    ? safe(entry, 'entry')
    : Number(entry - segment.virtualAddress) + segment.physicalAddress;
}

function safe(value: bigint, field: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw refusal('ERR_WIRE_LIMIT', `${field} 0x${value.toString(16)} is beyond 2^53`, 0);
  }
  return Number(value);
}

function refusal(code: WireErrorCode, found: string, offset: number): WireError {
  return new WireError(code, `Cannot accept ELF: ${found}`, { message: 'ELF', offset });
}
