import type { AccessSize, InterruptLine, MmioDevice } from '../../../../emulator/devices/device.ts';
import { PciHost, PciShared } from '../../../../emulator/devices/pci/mod.ts';
import { type VirtioDevice, VirtioMmioTransport, VirtioPciTransport } from '../../../../emulator/devices/virtio/mod.ts';
import { sharedWords } from '../../../macros/platform.ts';

// A transport's registers as a driver uses them: the same for virtio-mmio and virtio over PCI.

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
  /** As the machine's threads share it */
  readonly sharedWords = sharedWords(PciShared.WORDS);
  readonly host = new PciHost({ shared: new PciShared(this.sharedWords, this.lines) });
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
