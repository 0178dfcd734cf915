import {
  availEventOffset,
  availRingBytes,
  decodeVirtqDescriptor,
  descriptorTableBytes,
  isVirtqueueSize,
  passesEvent,
  usedEventOffset,
  usedRingBytes,
  VIRTQ_AVAIL_ALIGN,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_AVAIL_FLAGS,
  VIRTQ_AVAIL_IDX,
  VIRTQ_AVAIL_RING,
  VIRTQ_DESC_ALIGN,
  VIRTQ_DESC_BYTES,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_USED_ALIGN,
  VIRTQ_USED_ELEM_BYTES,
  VIRTQ_USED_IDX,
  VIRTQ_USED_RING,
  type VirtqDescriptor,
} from '../../../protocols/virtio/mod.ts';
import type { GuestMemory } from '../../memory/guest_memory.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import { Chain, type ChainSegment } from './chain.ts';
import { VirtQueueError } from './queue_error.ts';

/** Segments of one chain, indirect ones included; as QEMU, above any ring that we offer */
export const MAX_CHAIN_SEGMENTS = 1024;
/** Default sum of all segments of one chain, in `bytes` */
export const DEFAULT_MAX_CHAIN_BYTES = 64 * 1024 * 1024;

export interface VirtQueueOptions {
  /** Largest ring, a power of two */
  readonly maxSize: number;
  /** In `bytes` */
  readonly maxChainBytes?: number;
}

/**
 * The device's side of one split virtqueue (virtio 1.2 §2.7). The rings lie in guest memory and belong to a
 * hostile peer: each value is fetched once, every index is checked at use, and a breach of the protocol throws
 * VirtQueueError, upon which the device stops until it is reset. At most `size` chains are in flight, because a
 * head cannot be taken again before it was used.
 */
export class VirtQueue {
  readonly index: number;
  readonly maxSize: number;
  /** As the driver wrote it; checked by {@link enable} */
  size: number;
  descAddress = 0n;
  driverAddress = 0n;
  deviceAddress = 0n;

  readonly #memory: GuestMemory;
  readonly #maxChainBytes: number;
  #ready = false;
  #eventIdx = false;
  #indirect = false;
  // Checked copies of the three addresses, valid while ready.
  #desc = 0;
  #avail = 0;
  #used = 0;
  #lastAvail = 0;
  #usedIdx = 0;
  /** `used.idx` at the last interrupt decision */
  #signalledUsed = 0;
  #availEvent = -1;
  #dma = true;
  /** The chain that holds each head; replaced as a whole on reset, so that old chains are recognised */
  #inFlight = new Map<number, Chain>();
  readonly #isCurrent = (chain: Chain): boolean => this.#dma && this.#inFlight.get(chain.head) === chain;

  constructor(index: number, memory: GuestMemory, options: VirtQueueOptions) {
    if (!isVirtqueueSize(options.maxSize)) throw new RangeError(`Cannot make a queue of ${options.maxSize}`);
    this.index = index;
    this.maxSize = options.maxSize;
    this.size = options.maxSize;
    this.#memory = memory;
    this.#maxChainBytes = options.maxChainBytes ?? DEFAULT_MAX_CHAIN_BYTES;
  }

  get ready(): boolean {
    return this.#ready;
  }

  /** Chains taken and not yet completed */
  get inFlight(): number {
    return this.#inFlight.size;
  }

  /** PCI bus mastering: while it is off, no completion and no write of a chain reaches memory. */
  setDma(allowed: boolean): void {
    this.#dma = allowed;
  }

  /** What the driver negotiated; called when it sets FEATURES_OK. */
  negotiate(features: { eventIdx: boolean; indirect: boolean }): void {
    this.#eventIdx = features.eventIdx;
    this.#indirect = features.indirect;
  }

  /**
   * Checks size and addresses, and takes the queue into use.
   * @throws VirtQueueError
   */
  enable(): void {
    if (this.#ready) return;
    const rings = checkRings(this, this.#memory);
    if (typeof rings === 'string') throw new VirtQueueError(`Cannot enable queue ${this.index}: ${rings}`);
    [this.#desc, this.#avail, this.#used] = rings;
    this.#lastAvail = 0;
    this.#usedIdx = 0;
    this.#signalledUsed = 0;
    this.#availEvent = -1;
    this.#ready = true;
  }

  /** Forgets the rings and every chain in flight: their completions and writes do nothing from now on. */
  disable(): void {
    this.#ready = false;
    this.#inFlight = new Map();
  }

  /** To power-on values. */
  reset(): void {
    this.disable();
    this.size = this.maxSize;
    this.descAddress = 0n;
    this.driverAddress = 0n;
    this.deviceAddress = 0n;
    this.negotiate({ eventIdx: false, indirect: false });
  }

  /**
   * Takes the next available chain. When there is none, asks the driver to notify for the next one.
   * @throws VirtQueueError
   */
  pop(): Chain | undefined {
    const chain = this.peek();
    if (chain === undefined) return undefined;
    this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    this.#inFlight.set(chain.head, chain);
    return chain;
  }

  /** The chain that {@link pop} would take; it stays available and cannot be written or completed. */
  peek(): Chain | undefined {
    if (!this.#ready || !this.#hasAvailable()) return undefined;
    const slot = this.#lastAvail & (this.size - 1);
    return this.#walk(this.#memory.u16(this.#avail + VIRTQ_AVAIL_RING + 2 * slot));
  }

  /**
   * Gives a chain back with the count of bytes written into it. A chain of before a reset, or one already
   * completed, is ignored; then the result is false.
   */
  complete(chain: Chain, writtenBytes: number): boolean {
    if (!this.#ready || !this.#isCurrent(chain)) return false;
    this.#inFlight.delete(chain.head);
    const element = this.#used + VIRTQ_USED_RING + VIRTQ_USED_ELEM_BYTES * (this.#usedIdx & (this.size - 1));
    this.#memory.setU32(element, chain.head);
    this.#memory.setU32(element + 4, Math.min(writtenBytes, chain.writableBytes));
    this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    // The index is published after the element (§2.7.8.2); an atomic store orders the two.
    this.#memory.setAtomicU16(this.#used + VIRTQ_USED_IDX, this.#usedIdx);
    return true;
  }

  /** Tells, once after a batch of completions, if the driver wants an interrupt for it (§2.7.7, §2.7.10). */
  wantsInterrupt(): boolean {
    if (!this.#ready || this.#signalledUsed === this.#usedIdx) return false;
    const previous = this.#signalledUsed;
    this.#signalledUsed = this.#usedIdx;
    if (this.#eventIdx) {
      const event = this.#memory.atomicU16(this.#avail + usedEventOffset(this.size));
      return passesEvent(event, this.#usedIdx, previous);
    }
    return (this.#memory.atomicU16(this.#avail + VIRTQ_AVAIL_FLAGS) & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
  }

  saveState(): StateValue {
    return {
      size: this.size,
      ready: this.#ready,
      desc: this.descAddress,
      driver: this.driverAddress,
      device: this.deviceAddress,
      lastAvail: this.#lastAvail,
      usedIdx: this.#usedIdx,
      signalledUsed: this.#signalledUsed,
      availEvent: this.#availEvent,
    };
  }

  /** `broken`: the device waits for its reset, so chains may be lost. */
  prepareState(value: unknown, path: string, broken: boolean): () => void {
    const reader = new StateReader(path, value);
    const size = reader.integer('size', 0, 0xffff);
    const ready = reader.boolean('ready');
    const descAddress = reader.u64('desc');
    const driverAddress = reader.u64('driver');
    const deviceAddress = reader.u64('device');
    const lastAvail = reader.integer('lastAvail', 0, 0xffff);
    const usedIdx = reader.integer('usedIdx', 0, 0xffff);
    const signalledUsed = reader.integer('signalledUsed', 0, 0xffff);
    const availEvent = reader.integer('availEvent', -1, 0xffff);
    let rings: readonly [number, number, number] = [0, 0, 0];
    if (ready) {
      const checked = checkRings(
        { size, maxSize: this.maxSize, descAddress, driverAddress, deviceAddress },
        this.#memory,
      );
      if (typeof checked === 'string') throw new StateError(path, checked);
      rings = checked;
      // States are saved with nothing in flight, so each chain taken was also used.
      if (lastAvail !== usedIdx && !broken) {
        throw new StateError(`${path}.usedIdx`, `${usedIdx} used, ${lastAvail} taken: nothing may be in flight`);
      }
    }
    return () => {
      this.disable();
      this.size = size;
      this.descAddress = descAddress;
      this.driverAddress = driverAddress;
      this.deviceAddress = deviceAddress;
      [this.#desc, this.#avail, this.#used] = rings;
      this.#lastAvail = lastAvail;
      this.#usedIdx = usedIdx;
      this.#signalledUsed = signalledUsed;
      this.#availEvent = availEvent;
      this.#ready = ready;
    };
  }

  #hasAvailable(): boolean {
    const index = this.#availableIndex();
    if (index !== this.#lastAvail) return true;
    if (!this.#eventIdx || this.#availEvent === this.#lastAvail) return false;
    this.#availEvent = this.#lastAvail;
    this.#memory.setAtomicU16(this.#used + availEventOffset(this.size), this.#lastAvail);
    // The driver may have added a chain before it could see the event index: look once more.
    return this.#availableIndex() !== this.#lastAvail;
  }

  #availableIndex(): number {
    const index = this.#memory.atomicU16(this.#avail + VIRTQ_AVAIL_IDX);
    const count = (index - this.#lastAvail) & 0xffff;
    if (count > this.size) {
      throw new VirtQueueError(
        `Cannot take from queue ${this.index}: available index is ${count} ahead, queue size is ${this.size}`,
      );
    }
    return index;
  }

  #walk(head: number): Chain {
    if (head >= this.size) throw this.#error(`head ${head}, queue size is ${this.size}`);
    if (this.#inFlight.has(head)) throw this.#error(`head ${head} is in flight already`);
    const readable: ChainSegment[] = [];
    const writable: ChainSegment[] = [];
    let bytes = 0;

    const take = (descriptor: VirtqDescriptor): void => {
      const { length } = descriptor;
      const address = Number(descriptor.address);
      if (length === 0) throw this.#error('a descriptor of length 0');
      if (!this.#memory.contains(address, length)) {
        throw this.#error(`descriptor 0x${descriptor.address.toString(16)}+${length} is not RAM`);
      }
      if (length > this.#maxChainBytes - bytes) throw this.#error(`more than ${this.#maxChainBytes} bytes`);
      bytes += length;
      if (readable.length + writable.length === MAX_CHAIN_SEGMENTS) {
        throw this.#error(`more than ${MAX_CHAIN_SEGMENTS} segments`);
      }
      if ((descriptor.flags & VIRTQ_DESC_F_WRITE) !== 0) {
        writable.push({ address, length });
      } else {
        // Readable parts come first (§2.7.4.2).
        if (writable.length > 0) throw this.#error('a readable descriptor after a writable one');
        readable.push({ address, length });
      }
    };

    let index = head;
    // A chain that visits more descriptors than there are has a loop.
    for (let visited = 0; visited < this.size; visited++) {
      const descriptor = decodeVirtqDescriptor(
        this.#memory.read(this.#desc + VIRTQ_DESC_BYTES * index, VIRTQ_DESC_BYTES),
      );
      if ((descriptor.flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        // §2.7.5.3.1: not together with NEXT, only when negotiated.
        if (!this.#indirect) throw this.#error('an indirect descriptor was not negotiated');
        if ((descriptor.flags & VIRTQ_DESC_F_NEXT) !== 0) throw this.#error('an indirect descriptor with a next one');
        this.#walkIndirect(descriptor, take);
        return new Chain(head, readable, writable, this.#memory, this.#isCurrent);
      }
      take(descriptor);
      if ((descriptor.flags & VIRTQ_DESC_F_NEXT) === 0) {
        return new Chain(head, readable, writable, this.#memory, this.#isCurrent);
      }
      index = descriptor.next;
      if (index >= this.size) throw this.#error(`next ${index}, queue size is ${this.size}`);
    }
    throw this.#error(`a loop: more than ${this.size} descriptors`);
  }

  #walkIndirect(table: VirtqDescriptor, take: (descriptor: VirtqDescriptor) => void): void {
    const { length } = table;
    const address = Number(table.address);
    if (length === 0 || length % VIRTQ_DESC_BYTES !== 0 || length > MAX_CHAIN_SEGMENTS * VIRTQ_DESC_BYTES) {
      throw this.#error(`an indirect table of ${length} bytes`);
    }
    if (!this.#memory.contains(address, length)) {
      throw this.#error(`indirect table 0x${table.address.toString(16)}+${length} is not RAM`);
    }
    const bytes = this.#memory.read(address, length);
    const count = length / VIRTQ_DESC_BYTES;
    let index = 0;
    for (let visited = 0; visited < count; visited++) {
      const at = index * VIRTQ_DESC_BYTES;
      const descriptor = decodeVirtqDescriptor(bytes.subarray(at, at + VIRTQ_DESC_BYTES));
      if ((descriptor.flags & VIRTQ_DESC_F_INDIRECT) !== 0) throw this.#error('an indirect table in another');
      take(descriptor);
      if ((descriptor.flags & VIRTQ_DESC_F_NEXT) === 0) return;
      index = descriptor.next;
      if (index >= count) throw this.#error(`next ${index}, indirect table has ${count}`);
    }
    throw this.#error(`a loop: more than ${count} indirect descriptors`);
  }

  #error(found: string): VirtQueueError {
    return new VirtQueueError(`Cannot take chain from queue ${this.index}: ${found}`);
  }
}

interface RingRegisters {
  readonly size: number;
  readonly maxSize: number;
  readonly descAddress: bigint;
  readonly driverAddress: bigint;
  readonly deviceAddress: bigint;
}

/** The three ring addresses as numbers, or what is wrong with them. */
function checkRings(queue: RingRegisters, memory: GuestMemory): readonly [number, number, number] | string {
  const { size } = queue;
  if (!isVirtqueueSize(size) || size > queue.maxSize) return `size ${size}, limit is ${queue.maxSize}`;
  const check = (part: string, at: bigint, bytes: number, align: number): number | string => {
    // Above 2^53 a number is not exact, and not RAM either.
    const address = Number(at);
    if (!memory.contains(address, bytes)) return `${part} 0x${at.toString(16)}+${bytes} is not RAM`;
    return address % align === 0 ? address : `${part} 0x${at.toString(16)} is not aligned to ${align}`;
  };
  const desc = check('descriptor area', queue.descAddress, descriptorTableBytes(size), VIRTQ_DESC_ALIGN);
  if (typeof desc === 'string') return desc;
  const avail = check('driver area', queue.driverAddress, availRingBytes(size), VIRTQ_AVAIL_ALIGN);
  if (typeof avail === 'string') return avail;
  const used = check('device area', queue.deviceAddress, usedRingBytes(size), VIRTQ_USED_ALIGN);
  if (typeof used === 'string') return used;
  return [desc, avail, used];
}
