import type { AccessSize, InterruptLine, MmioDevice } from '../../../../emulator/devices/device.ts';
import { PciHost } from '../../../../emulator/devices/pci/mod.ts';
import { type VirtioDevice, VirtioMmioTransport, VirtioPciTransport } from '../../../../emulator/devices/virtio/mod.ts';
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

/** An interrupt line that remembers. */
export class TestLine implements InterruptLine {
  level = false;
  /** Times that it rose */
  rises = 0;
  set(level: boolean): void {
    if (level && !this.level) this.rises++;
    this.level = level;
  }
}

/** What a driver does through registers; both transports give the same. */
export interface Registers {
  readonly kind: 'mmio' | 'pci';
  readonly line: TestLine;
  status: number;
  features(): bigint;
  setFeatures(features: bigint): void;
  maxQueueSize(index: number): number;
  setQueue(index: number, size: number, desc: bigint, driver: bigint, device: bigint): void;
  enableQueue(index: number): void;
  queueEnabled(index: number): boolean;
  notify(index: number): void;
  /** Causes, acknowledged */
  takeInterrupt(): number;
  config(offset: number, size: AccessSize): number;
  setConfig(offset: number, size: AccessSize, value: number): void;
  configGeneration(): number;
}

export class MmioRegisters implements Registers {
  readonly kind = 'mmio';
  readonly line = new TestLine();
  readonly transport: VirtioMmioTransport;

  constructor(device: VirtioDevice) {
    this.transport = new VirtioMmioTransport(device, this.line);
  }
  read(offset: number): number {
    return this.transport.read(offset, 4);
  }
  write(offset: number, value: number): void {
    this.transport.write(offset, 4, value);
  }
  get status(): number {
    return this.read(0x70);
  }
  set status(value: number) {
    this.write(0x70, value);
  }
  features(): bigint {
    this.write(0x14, 1);
    const high = this.read(0x10);
    this.write(0x14, 0);
    return (BigInt(high) << 32n) | BigInt(this.read(0x10));
  }
  setFeatures(features: bigint): void {
    this.write(0x24, 1);
    this.write(0x20, Number(features >> 32n));
    this.write(0x24, 0);
    this.write(0x20, Number(features & 0xffff_ffffn));
  }
  maxQueueSize(index: number): number {
    this.write(0x30, index);
    return this.read(0x34);
  }
  setQueue(index: number, size: number, desc: bigint, driver: bigint, device: bigint): void {
    this.write(0x30, index);
    this.write(0x38, size);
    for (const [at, address] of [
      [0x80, desc],
      [0x90, driver],
      [0xa0, device],
    ] as const) {
      this.write(at, Number(address & 0xffff_ffffn));
      this.write(at + 4, Number(address >> 32n));
    }
  }
  enableQueue(index: number): void {
    this.write(0x30, index);
    this.write(0x44, 1);
  }
  queueEnabled(index: number): boolean {
    this.write(0x30, index);
    return this.read(0x44) === 1;
  }
  notify(index: number): void {
    this.write(0x50, index);
  }
  takeInterrupt(): number {
    const causes = this.read(0x60);
    this.write(0x64, causes);
    return causes;
  }
  config(offset: number, size: AccessSize): number {
    return this.transport.read(0x100 + offset, size);
  }
  setConfig(offset: number, size: AccessSize, value: number): void {
    this.transport.write(0x100 + offset, size, value);
  }
  configGeneration(): number {
    return this.read(0xfc);
  }
}

/** Where the tests put the BAR: in the high window */
export const BAR_ADDRESS = 0x4_0001_0000;
const BAR_OFFSET = BAR_ADDRESS - 0x4_0000_0000;
export const SLOT = 3;

export class PciRegisters implements Registers {
  readonly kind = 'pci';
  readonly lines = [new TestLine(), new TestLine(), new TestLine(), new TestLine()];
  readonly host = new PciHost({ interrupts: this.lines });
  readonly transport: VirtioPciTransport;
  readonly window: MmioDevice = this.host.mmio64;

  constructor(device: VirtioDevice) {
    this.transport = new VirtioPciTransport(device);
    this.host.add(SLOT, this.transport);
    this.setPciConfig(0x20, 4, BAR_ADDRESS % 2 ** 32);
    this.setPciConfig(0x24, 4, Math.floor(BAR_ADDRESS / 2 ** 32));
    this.setPciConfig(0x04, 2, 0x6);
  }
  get line(): TestLine {
    return this.lines[SLOT % 4]!;
  }
  pciConfig(register: number, size: AccessSize): number {
    return this.host.ecam.read((SLOT << 15) + register, size);
  }
  setPciConfig(register: number, size: AccessSize, value: number): void {
    this.host.ecam.write((SLOT << 15) + register, size, value);
  }
  read(offset: number, size: AccessSize): number {
    return this.window.read(BAR_OFFSET + offset, size);
  }
  write(offset: number, size: AccessSize, value: number): void {
    this.window.write(BAR_OFFSET + offset, size, value);
  }
  get status(): number {
    return this.read(20, 1);
  }
  set status(value: number) {
    this.write(20, 1, value);
  }
  features(): bigint {
    this.write(0, 4, 0);
    const low = this.read(4, 4);
    this.write(0, 4, 1);
    return (BigInt(this.read(4, 4)) << 32n) | BigInt(low);
  }
  setFeatures(features: bigint): void {
    this.write(8, 4, 0);
    this.write(12, 4, Number(features & 0xffff_ffffn));
    this.write(8, 4, 1);
    this.write(12, 4, Number(features >> 32n));
  }
  maxQueueSize(index: number): number {
    this.write(22, 2, index);
    return this.read(24, 2);
  }
  setQueue(index: number, size: number, desc: bigint, driver: bigint, device: bigint): void {
    this.write(22, 2, index);
    this.write(24, 2, size);
    for (const [at, address] of [
      [32, desc],
      [40, driver],
      [48, device],
    ] as const) {
      this.write(at, 4, Number(address & 0xffff_ffffn));
      this.write(at + 4, 4, Number(address >> 32n));
    }
  }
  enableQueue(index: number): void {
    this.write(22, 2, index);
    this.write(28, 2, 1);
  }
  queueEnabled(index: number): boolean {
    this.write(22, 2, index);
    return this.read(28, 2) === 1;
  }
  notify(index: number): void {
    this.write(22, 2, index);
    this.write(0x3000 + 4 * this.read(30, 2), 2, index);
  }
  takeInterrupt(): number {
    return this.read(0x1000, 1);
  }
  config(offset: number, size: AccessSize): number {
    return this.read(0x2000 + offset, size);
  }
  setConfig(offset: number, size: AccessSize, value: number): void {
    this.write(0x2000 + offset, size, value);
  }
  configGeneration(): number {
    return this.read(21, 1);
  }
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
