import type { GuestMemory } from '../../memory/guest_memory.ts';

/** One piece of guest memory; checked to be RAM when the chain was taken. */
export interface ChainSegment {
  /** Guest physical */
  readonly address: number;
  /** In `bytes`, never 0 */
  readonly length: number;
}

/**
 * A descriptor chain, taken from its queue: a private copy of the descriptors, so nothing that the guest does
 * to its table afterwards changes what a request covers. `write` does nothing once the queue was reset.
 */
export class Chain {
  readonly head: number;
  readonly readable: readonly ChainSegment[];
  readonly writable: readonly ChainSegment[];
  /** Sum of the device-readable part, in `bytes` */
  readonly readableBytes: number;
  /** Sum of the device-writable part, in `bytes` */
  readonly writableBytes: number;
  readonly #memory: GuestMemory;
  /** False when the queue was reset after the chain was taken, or the chain was completed */
  readonly #isCurrent: (chain: Chain) => boolean;

  constructor(
    head: number,
    readable: readonly ChainSegment[],
    writable: readonly ChainSegment[],
    memory: GuestMemory,
    isCurrent: (chain: Chain) => boolean,
  ) {
    this.head = head;
    this.readable = readable;
    this.writable = writable;
    this.readableBytes = total(readable);
    this.writableBytes = total(writable);
    this.#memory = memory;
    this.#isCurrent = isCurrent;
  }

  /**
   * Copies out of the device-readable part, once: parse only the copy.
   * @throws RangeError when the part is shorter: the caller checks `readableBytes` first
   */
  read(offset: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
    this.#checkReadable(offset, lengthBytes);
    const out = new Uint8Array(lengthBytes);
    this.readInto(offset, out);
    return out;
  }

  /** As {@link read}, `into.length` bytes. */
  readInto(offset: number, into: Uint8Array): void {
    this.#checkReadable(offset, into.length);
    eachPiece(this.readable, offset, into.length, (address, at, length) => {
      this.#memory.readInto(address, into.subarray(at, at + length));
    });
  }

  #checkReadable(offset: number, lengthBytes: number): void {
    if (offset < 0 || lengthBytes < 0 || offset > this.readableBytes || lengthBytes > this.readableBytes - offset) {
      throw new RangeError(`Cannot read ${lengthBytes} bytes at ${offset} of a chain: it has ${this.readableBytes}`);
    }
  }

  /**
   * Copies into the device-writable part, across segments.
   * @throws RangeError when the part is shorter: the caller checks `writableBytes` first
   */
  write(offset: number, bytes: Uint8Array): void {
    if (offset < 0 || offset > this.writableBytes || bytes.length > this.writableBytes - offset) {
      throw new RangeError(`Cannot write ${bytes.length} bytes at ${offset} of a chain: it has ${this.writableBytes}`);
    }
    if (!this.#isCurrent(this)) return;
    eachPiece(this.writable, offset, bytes.length, (address, at, length) => {
      this.#memory.write(address, bytes.subarray(at, at + length));
    });
  }

  /** Zeroes a part of the device-writable bytes. */
  fill(offset: number, lengthBytes: number): void {
    if (offset < 0 || lengthBytes < 0 || offset > this.writableBytes || lengthBytes > this.writableBytes - offset) {
      throw new RangeError(`Cannot zero ${lengthBytes} bytes at ${offset} of a chain: it has ${this.writableBytes}`);
    }
    if (!this.#isCurrent(this)) return;
    eachPiece(this.writable, offset, lengthBytes, (address, _at, length) => this.#memory.fill(address, length, 0));
  }
}

function total(segments: readonly ChainSegment[]): number {
  let sum = 0;
  for (const segment of segments) sum += segment.length;
  return sum;
}

function eachPiece(
  segments: readonly ChainSegment[],
  offset: number,
  lengthBytes: number,
  visit: (address: number, at: number, length: number) => void,
): void {
  let skip = offset;
  let done = 0;
  for (const segment of segments) {
    if (done === lengthBytes) return;
    if (skip >= segment.length) {
      skip -= segment.length;
      continue;
    }
    const length = Math.min(segment.length - skip, lengthBytes - done);
    visit(segment.address + skip, done, length);
    done += length;
    skip = 0;
  }
}
