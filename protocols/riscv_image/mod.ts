export { decodeRiscvImage, isRiscvImage, RISCV_IMAGE_HEADER_BYTES, type RiscvImage } from './decode.ts';
