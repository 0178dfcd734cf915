import { createCipheriv, createDecipheriv } from 'node:crypto';

export const SECTOR_BYTES = 512;

/** AES-XTS, each sector of 512 bytes by its number, 64 bits little-endian ("xts-plain64"). */
export class SectorCipher {
  readonly #key: Uint8Array;
  readonly #name: string;
  readonly #tweak = Buffer.alloc(16);

  /** `key`: both halves, 32 `bytes` for AES-128 or 64 for AES-256 */
  constructor(key: Uint8Array) {
    this.#key = key;
    this.#name = key.length === 32 ? 'aes-128-xts' : 'aes-256-xts';
  }

  /** In place; `sectors` begins at sector number `first`. */
  decrypt(sectors: Uint8Array, first: number): void {
    this.#each(sectors, first, (sector) => {
      const cipher = createDecipheriv(this.#name, this.#key, this.#tweak);
      sector.set(cipher.update(sector));
    });
  }

  encrypt(sectors: Uint8Array, first: number): void {
    this.#each(sectors, first, (sector) => {
      const cipher = createCipheriv(this.#name, this.#key, this.#tweak);
      sector.set(cipher.update(sector));
    });
  }

  #each(sectors: Uint8Array, first: number, run: (sector: Uint8Array) => void): void {
    for (let at = 0; at < sectors.length; at += SECTOR_BYTES) {
      this.#tweak.writeBigUInt64LE(BigInt(first + at / SECTOR_BYTES));
      run(sectors.subarray(at, at + SECTOR_BYTES));
    }
  }
}
