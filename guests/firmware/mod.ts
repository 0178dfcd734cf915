export { compileFirmware, firmwareCompiler } from './compiler.ts';
export { FIRMWARE_COMPILER, firmwareElf } from './firmware_image.ts';
