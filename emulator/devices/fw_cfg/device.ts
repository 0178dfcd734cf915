import { Cursor, Writer } from '../../../protocols/bytes/mod.ts';
import { type GuestMemory, GuestMemoryError } from '../../memory/guest_memory.ts';
import type { StateValue } from '../../state/state.ts';
import type { AccessSize, Device, MmioDevice } from '../device.ts';
import * as reg from './registers.ts';
import { decodeFwCfgState, encodeFwCfgState, FW_CFG_RESET, type FwCfgState } from './state.ts';

/** The position stops here: a guest may read for ever, the counter need not */
const MAX_POSITION = 0xffff_ffff;

export interface FwCfgOptions {
  /** In `bytes` */
  readonly ramBytes: number;
  readonly harts: number;
  /** 16 bytes */
  readonly uuid?: Uint8Array | undefined;
}

/**
 * How firmware asks about the machine: numbered items and named files, read byte by byte or by DMA. Everything
 * is read-only to the guest. Lives on one thread: harts reach it through the machine's bus.
 */
export class FwCfg implements MmioDevice, Device {
  readonly name = 'fw_cfg_mem';
  readonly stateName = 'fw_cfg0';
  readonly stateVersion = 1;
  readonly #memory: GuestMemory;
  readonly #items = new Map<number, Uint8Array>();
  readonly #files: { readonly name: string; readonly key: number; readonly bytes: number }[] = [];
  #state: FwCfgState = { ...FW_CFG_RESET };

  constructor(memory: GuestMemory, options: FwCfgOptions) {
    this.#memory = memory;
    const { FW_CFG_KEY: key } = reg;
    this.setItem(key.signature, new Writer().utf8('QEMU').finish());
    // Items of fixed layout are little-endian, unlike the registers
    this.setItem(key.id, new Writer().u32le(reg.ID_TRADITIONAL | reg.ID_DMA).finish());
    this.setItem(key.uuid, options.uuid ?? new Uint8Array(16));
    this.setItem(key.ramSize, new Writer().u64le(BigInt(options.ramBytes)).finish());
    this.setItem(key.harts, new Writer().u16le(options.harts).finish());
    this.#writeDirectory();
  }

  /** Sets a numbered item; the bytes are kept, not copied. */
  setItem(key: number, bytes: Uint8Array): void {
    if (!Number.isInteger(key) || key < 0 || key > 0xffff) throw new RangeError(`Cannot add fw_cfg item ${key}`);
    this.#items.set(key, bytes);
  }

  /** Adds a file, such as `etc/…` or `opt/…`; the bytes are kept, not copied. */
  addFile(name: string, bytes: Uint8Array): void {
    const nameBytes = new TextEncoder().encode(name).length;
    if (nameBytes === 0 || nameBytes >= reg.FILE_NAME_BYTES || name.includes('\0')) {
      throw new RangeError(`Cannot add fw_cfg file ${JSON.stringify(name)}: its name must be 1..55 bytes`);
    }
    if (this.#files.some((file) => file.name === name)) throw new RangeError(`Cannot add fw_cfg file ${name} twice`);
    if (this.#files.length >= reg.FW_CFG_LIMITS.files) {
      throw new RangeError(`Cannot add fw_cfg file ${name}: limit is ${reg.FW_CFG_LIMITS.files} files`);
    }
    const key = reg.FW_CFG_KEY.firstFile + this.#files.length;
    this.#files.push({ name, key, bytes: bytes.length });
    this.setItem(key, bytes);
    this.#writeDirectory();
  }

  read(offset: number, size: AccessSize): number {
    if (offset < reg.DATA + reg.DATA_BYTES) {
      // Bytes keep their order in the guest's register: the first is the lowest
      let value = 0;
      for (let index = 0; index < size; index++) value += this.#next() * 2 ** (8 * index);
      return value;
    }
    if (size !== 4) return 0;
    if (offset === reg.DMA_HIGH) return swap32(reg.DMA_SIGNATURE_HIGH);
    if (offset === reg.DMA_LOW) return swap32(reg.DMA_SIGNATURE_LOW);
    return 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset === reg.SELECTOR && size === 2) {
      this.#select(((value & 0xff) << 8) | ((value >>> 8) & 0xff));
    } else if (offset === reg.DMA_HIGH && size === 4) {
      this.#state.dmaHigh = swap32(value);
    } else if (offset === reg.DMA_LOW && size === 4) {
      const address = this.#state.dmaHigh * 2 ** 32 + swap32(value);
      this.#state.dmaHigh = 0;
      this.#transfer(address);
    }
    // The data register is read-only since QEMU 2.4
  }

  reset(): void {
    this.#state = { ...FW_CFG_RESET };
  }

  saveState(): StateValue {
    return encodeFwCfgState(this.#state);
  }

  prepareState(value: unknown, version: number): () => void {
    const state = decodeFwCfgState(this.stateName, value, version);
    return () => {
      this.#state = state;
    };
  }

  #select(key: number): void {
    this.#state.key = key;
    this.#state.position = 0;
  }

  #item(): Uint8Array {
    return this.#items.get(this.#state.key) ?? new Uint8Array(0);
  }

  /** Beyond its end an item reads zero */
  #next(): number {
    const byte = this.#item()[this.#state.position] ?? 0;
    this.#advance(1);
    return byte;
  }

  #advance(bytes: number): void {
    this.#state.position = Math.min(this.#state.position + bytes, MAX_POSITION);
  }

  #transfer(structureAddress: number): void {
    let control = reg.DMA_ERROR;
    try {
      // Fetched once: what the guest changes later is not seen
      const structure = new Cursor(this.#memory.read(structureAddress, reg.DMA_STRUCTURE_BYTES), 'fw_cfg DMA');
      control = this.#run(structure.u32('control'), structure.u32('length'), structure.u64('address'));
      // Zero tells the guest that it is done; it polls this word
      this.#memory.setU32(structureAddress, swap32(control));
    } catch (error) {
      // A structure outside of RAM has nowhere for an answer
      if (!(error instanceof GuestMemoryError)) throw error;
    }
  }

  /** Gives the control word of the answer. */
  #run(control: number, length: number, address: bigint): number {
    if ((control & reg.DMA_SELECT) !== 0) this.#select(control >>> 16);
    if ((control & reg.DMA_READ) !== 0) return this.#dmaRead(length, address);
    if ((control & reg.DMA_WRITE) !== 0) return reg.DMA_ERROR;
    if ((control & reg.DMA_SKIP) !== 0) this.#advance(length);
    return 0;
  }

  #dmaRead(length: number, address: bigint): number {
    if (
      length > reg.FW_CFG_LIMITS.dmaBytes ||
      address > BigInt(Number.MAX_SAFE_INTEGER) ||
      !this.#memory.contains(Number(address), length)
    ) {
      return reg.DMA_ERROR;
    }
    const item = this.#item();
    const start = Math.min(this.#state.position, item.length);
    const bytes = item.subarray(start, start + Math.min(length, item.length - start));
    this.#memory.write(Number(address), bytes);
    this.#memory.fill(Number(address) + bytes.length, length - bytes.length, 0);
    this.#advance(length);
    return 0;
  }

  #writeDirectory(): void {
    const directory = new Writer(4 + this.#files.length * 64).u32(this.#files.length);
    for (const file of this.#files) {
      const start = directory.length;
      directory.u32(file.bytes).u16(file.key).u16(0).utf8(file.name);
      directory.zeroes(start + 8 + reg.FILE_NAME_BYTES - directory.length);
    }
    this.setItem(reg.FW_CFG_KEY.fileDirectory, directory.finish());
  }
}

/** Unsigned */
function swap32(value: number): number {
  return (((value & 0xff) << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | ((value >>> 24) & 0xff)) >>> 0;
}
