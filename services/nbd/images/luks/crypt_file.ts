import { type ImageFile, ImageFileOver } from '../qcow2/image_file.ts';
import { SECTOR_BYTES, type SectorCipher } from './sector_cipher.ts';

/**
 * A file whose contents are encrypted, from `startBytes` of the file below on: what is not a whole sector is read
 * before it is written, so two writers of one sector must not be in work at once.
 */
export class CryptFile extends ImageFileOver {
  readonly #cipher: SectorCipher;
  readonly #start: number;

  constructor(file: ImageFile, cipher: SectorCipher, startBytes = 0) {
    super(file);
    this.#cipher = cipher;
    this.#start = startBytes;
  }

  get sizeBytes(): number {
    return Math.max(0, this.file.sizeBytes - this.#start);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const sectors = around(offset, into.length);
    await this.file.read(this.#start + sectors.from, sectors.bytes);
    this.#open(sectors, offset, into);
  }

  readNow(offset: number, into: Uint8Array): void {
    const sectors = around(offset, into.length);
    this.file.readNow(this.#start + sectors.from, sectors.bytes);
    this.#open(sectors, offset, into);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    const sectors = around(offset, data.length);
    if (sectors.bytes.length !== data.length) await this.read(sectors.from, sectors.bytes);
    this.#seal(sectors, offset, data);
    await this.file.write(this.#start + sectors.from, sectors.bytes);
  }

  writeNow(offset: number, data: Uint8Array): void {
    const sectors = around(offset, data.length);
    if (sectors.bytes.length !== data.length) this.readNow(sectors.from, sectors.bytes);
    this.#seal(sectors, offset, data);
    this.file.writeNow(this.#start + sectors.from, sectors.bytes);
  }

  #open({ from, bytes }: Sectors, offset: number, into: Uint8Array): void {
    this.#cipher.decrypt(bytes, from / SECTOR_BYTES);
    into.set(bytes.subarray(offset - from, offset - from + into.length));
  }

  #seal({ from, bytes }: Sectors, offset: number, data: Uint8Array): void {
    bytes.set(data, offset - from);
    this.#cipher.encrypt(bytes, from / SECTOR_BYTES);
  }
}

interface Sectors {
  readonly from: number;
  readonly bytes: Uint8Array;
}

function around(offset: number, lengthBytes: number): Sectors {
  const from = offset - (offset % SECTOR_BYTES);
  const to = Math.ceil((offset + lengthBytes) / SECTOR_BYTES) * SECTOR_BYTES;
  return { from, bytes: new Uint8Array(to - from) };
}
