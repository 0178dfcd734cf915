export { decodeElf, ELF_LIMITS, ELF_MAGIC, type ElfProgram, type ElfSegment, isElf } from './decode.ts';
