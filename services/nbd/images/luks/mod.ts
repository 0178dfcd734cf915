export { type CreateLuksOptions, createLuks, createLuksHeader } from './create.ts';
export { CryptFile } from './crypt_file.ts';
export { inspectLuks } from './inspect.ts';
export { type AddKey, changeLuksKeys, type EraseKeys } from './key_slots.ts';
export { LuksImage, type LuksImageOptions } from './luks_image.ts';
export type { IterationOptions } from './seal.ts';
export { SECTOR_BYTES, SectorCipher } from './sector_cipher.ts';
export { type LuksArea, readLuksHeader, unlockLuks } from './unlock.ts';
