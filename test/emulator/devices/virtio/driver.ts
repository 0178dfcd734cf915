import { GuestMemory, PAGE_BYTES, RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import {
  availEventOffset,
  availRingBytes,
  decodeVirtqUsedElement,
  descriptorTableBytes,
  encodeVirtqDescriptor,
  usedEventOffset,
  usedRingBytes,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
} from '../../../../protocols/virtio/mod.ts';
import type { Registers } from './registers.ts';

export { BAR_ADDRESS, MmioRegisters, PciRegisters, type Registers, SLOT } from './registers.ts';

// The driver's side of virtio, for tests: it lays rings in guest memory and drives a device through a
// transport's registers only, well or, where a test wants that, badly.

export const STATUS = { ack: 1, driver: 2, driverOk: 4, featuresOk: 8, needsReset: 64, failed: 128 } as const;
export const EVENT_IDX = 1n << 29n;
export const INDIRECT = 1n << 28n;
export const VERSION_1 = 1n << 32n;

/** RAM of `pages` pages. */
export function makeMemory(pages = 1024): GuestMemory {
  return new GuestMemory(new Uint8Array(pages * PAGE_BYTES), new Uint8Array(pages));
}

/** A part of a chain: bytes that the device reads, or room that it writes. */
export type Part = Uint8Array | { readonly writable: number };

export interface Descriptor {
  readonly address: number | bigint;
  readonly length: number;
  readonly flags: number;
  readonly next: number;
}

export interface Used {
  readonly head: number;
  readonly length: number;
  /** The device-writable parts, joined */
  readonly written: Uint8Array;
}

/** One queue of the driver; its rings and buffers lie from `base` on. */
export class DriverQueue {
  readonly index: number;
  readonly size: number;
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  readonly #memory: GuestMemory;
  readonly #registers: Registers;
  #buffers: number;
  readonly #firstBuffer: number;
  #availIdx = 0;
  #usedIdx = 0;
  #nextHead = 0;
  readonly #writable = new Map<number, { address: number; length: number }[]>();

  constructor(memory: GuestMemory, registers: Registers, index: number, size: number, base: number) {
    this.#memory = memory;
    this.#registers = registers;
    this.index = index;
    this.size = size;
    const page = (bytes: number): number => Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
    this.desc = base;
    this.avail = this.desc + page(descriptorTableBytes(size));
    this.used = this.avail + page(availRingBytes(size));
    this.#firstBuffer = this.used + page(usedRingBytes(size));
    this.#buffers = this.#firstBuffer;
    memory.fill(base, this.#firstBuffer - base, 0);
  }

  enable(): void {
    this.#registers.setQueue(this.index, this.size, BigInt(this.desc), BigInt(this.avail), BigInt(this.used));
    this.#registers.enableQueue(this.index);
  }

  /** Room in guest memory, never given twice in a test. */
  allocate(lengthBytes: number): number {
    const address = this.#buffers;
    this.#buffers += Math.max(16, Math.ceil(lengthBytes / 16) * 16);
    return address;
  }

  putDescriptor(index: number, { address, length, flags, next }: Descriptor): void {
    this.#memory.write(
      this.desc + 16 * index,
      encodeVirtqDescriptor({ address: BigInt(address), length, flags, next }),
    );
  }

  /** Puts a head into the available ring; the device learns of it by `publish`. */
  offer(head: number): void {
    this.#memory.setU16(this.avail + 4 + 2 * (this.#availIdx % this.size), head);
    this.#availIdx = (this.#availIdx + 1) & 0xffff;
  }
  publish(): void {
    this.#memory.setU16(this.avail + 2, this.#availIdx);
  }
  setAvailableIndex(value: number): void {
    this.#availIdx = value & 0xffff;
    this.publish();
  }

  /** Lays a chain into free descriptors (or an indirect table) and offers it; gives its head. */
  add(parts: readonly Part[], options: { indirect?: boolean } = {}): number {
    const pieces = parts.map((part) => {
      const isRead = part instanceof Uint8Array;
      const length = isRead ? part.length : part.writable;
      const address = this.allocate(length);
      if (isRead) this.#memory.write(address, part);
      return { address, length, flags: isRead ? 0 : VIRTQ_DESC_F_WRITE };
    });
    const head = this.#nextHead;
    this.#writable.set(
      head,
      pieces.filter((piece) => piece.flags === VIRTQ_DESC_F_WRITE),
    );
    if (options.indirect === true) {
      const table = this.allocate(16 * pieces.length);
      for (const [index, piece] of pieces.entries()) {
        const more = index + 1 < pieces.length;
        this.#memory.write(
          table + 16 * index,
          encodeVirtqDescriptor({
            address: BigInt(piece.address),
            length: piece.length,
            flags: piece.flags | (more ? VIRTQ_DESC_F_NEXT : 0),
            next: more ? index + 1 : 0,
          }),
        );
      }
      this.putDescriptor(head, { address: table, length: 16 * pieces.length, flags: VIRTQ_DESC_F_INDIRECT, next: 0 });
      this.#nextHead = (head + 1) % this.size;
    } else {
      for (const [index, piece] of pieces.entries()) {
        const more = index + 1 < pieces.length;
        this.putDescriptor((head + index) % this.size, {
          ...piece,
          flags: piece.flags | (more ? VIRTQ_DESC_F_NEXT : 0),
          next: more ? (head + index + 1) % this.size : 0,
        });
      }
      this.#nextHead = (head + pieces.length) % this.size;
    }
    this.offer(head);
    return head;
  }

  /** Adds one chain, tells the device, and gives its head. */
  submit(parts: readonly Part[], options: { indirect?: boolean } = {}): number {
    const head = this.add(parts, options);
    this.publish();
    this.#registers.notify(this.index);
    return head;
  }

  get usedIndex(): number {
    return this.#memory.u16(this.used + 2);
  }

  /** What the device has used since the last call. */
  takeUsed(): Used[] {
    const out: Used[] = [];
    while (this.#usedIdx !== this.usedIndex) {
      const at = this.used + 4 + 8 * (this.#usedIdx % this.size);
      const { id, length } = decodeVirtqUsedElement(this.#memory.read(at, 8));
      const bytes = (this.#writable.get(id) ?? []).flatMap((piece) => [
        ...this.#memory.read(piece.address, piece.length),
      ]);
      out.push({ head: id, length, written: Uint8Array.from(bytes) });
      this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    }
    return out;
  }

  set usedEvent(value: number) {
    this.#memory.setU16(this.avail + usedEventOffset(this.size), value);
  }
  get availEvent(): number {
    return this.#memory.u16(this.used + availEventOffset(this.size));
  }
  set noInterrupt(value: boolean) {
    this.#memory.setU16(this.avail, value ? 1 : 0);
  }
}

export interface DriverOptions {
  /** Of those offered (default: all) */
  readonly features?: bigint;
  readonly queueSize?: number;
}

/** A driver that has found its device. */
export class Driver {
  readonly memory: GuestMemory;
  readonly registers: Registers;
  queues: DriverQueue[] = [];

  constructor(memory: GuestMemory, registers: Registers) {
    this.memory = memory;
    this.registers = registers;
  }

  /** Reset, features, queues, DRIVER_OK, as virtio 1.2 §3.1.1 says. */
  start(options: DriverOptions = {}): this {
    const { registers } = this;
    registers.status = 0;
    registers.status = STATUS.ack;
    registers.status = STATUS.ack | STATUS.driver;
    registers.setFeatures(registers.features() & (options.features ?? ~0n));
    registers.status = STATUS.ack | STATUS.driver | STATUS.featuresOk;
    this.queues = [];
    for (let index = 0; registers.maxQueueSize(index) > 0 && index < 16; index++) {
      const size = Math.min(options.queueSize ?? 16, registers.maxQueueSize(index));
      const queue = new DriverQueue(this.memory, registers, index, size, RAM_BASE + index * 0x10_0000);
      queue.enable();
      this.queues.push(queue);
    }
    registers.status = STATUS.ack | STATUS.driver | STATUS.featuresOk | STATUS.driverOk;
    return this;
  }

  get broken(): boolean {
    return (this.registers.status & STATUS.needsReset) !== 0;
  }
}

/** Lets promises of a backend settle. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
}
