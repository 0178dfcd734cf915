export { FIRMWARE_COMPILER, firmwareElf } from './firmware_image.ts';
