import { GPU_FORMATS, type GpuRectangle, MAX_BACKING_ENTRIES } from '../../../protocols/virtio/mod.ts';
import type { GuestMemory } from '../../memory/guest_memory.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';

/** No side of a resource is longer, in `pixels` */
export const MAX_SIDE = 8192;
const MAX_RESOURCES = 256;
/** One resource, in `bytes`: bounds what a single command can keep the machine busy with */
export const MAX_RESOURCE_BYTES = 64 * 1024 * 1024;
/** All resources together, in `bytes` */
export const MAX_TOTAL_BYTES = 256 * 1024 * 1024;
/** Pieces of backing of all resources together: twice what MAX_TOTAL_BYTES in single pages needs */
export const MAX_TOTAL_BACKING = 131_072;

export type ResourceError = 'id' | 'parameter' | 'memory' | 'backed';

/** A piece of guest RAM as the guest names it */
export interface BackingEntry {
  readonly address: bigint;
  /** In `bytes` */
  readonly length: number;
}

/** Guest RAM that holds a resource's pixels for transfers: pieces that were checked when they were attached. */
class Backing {
  readonly addresses: readonly number[];
  readonly lengths: readonly number[];
  /** Offset of each piece in the whole, in `bytes` */
  readonly #starts: readonly number[];

  constructor(addresses: readonly number[], lengths: readonly number[]) {
    this.addresses = addresses;
    this.lengths = lengths;
    let start = 0;
    this.#starts = lengths.map((length) => {
      const at = start;
      start += length;
      return at;
    });
  }

  /** Copies from `offset` on; bytes that the backing does not have are left alone. */
  read(memory: GuestMemory, offset: number, into: Uint8Array): void {
    let done = 0;
    for (let index = this.#pieceAt(offset); index < this.lengths.length && done < into.length; index++) {
      const skip = offset + done - this.#starts[index]!;
      const piece = Math.min(this.lengths[index]! - skip, into.length - done);
      if (piece <= 0) return;
      memory.readInto(this.addresses[index]! + skip, into.subarray(done, done + piece));
      done += piece;
    }
  }

  /** The last piece that starts at or before `offset`, by halving: rows of a large picture must not walk the list. */
  #pieceAt(offset: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.#starts[middle]! <= offset) low = middle;
      else high = middle;
    }
    return low;
  }
}

/** A picture that the guest made: its own pixels, and the same as the display shows them (B G R X). */
export class GpuResource {
  readonly format: number;
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array<ArrayBuffer>;
  /** The same memory where the guest's format is the display's */
  readonly shown: Uint8Array<ArrayBuffer>;
  backing: Backing | undefined;

  constructor(format: number, width: number, height: number) {
    this.format = format;
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(width * height * 4);
    const { b, g, r } = GPU_FORMATS.get(format)!;
    const native = b === 0 && g === 1 && r === 2;
    this.shown = native ? this.pixels : new Uint8Array(width * height * 4);
  }

  /** Brings what is shown up to date in a rectangle inside the resource. */
  convert({ x, y, width, height }: GpuRectangle): void {
    const { pixels, shown } = this;
    if (shown === pixels) return;
    const { b, g, r, a } = GPU_FORMATS.get(this.format)!;
    for (let row = y; row < y + height; row++) {
      const start = (row * this.width + x) * 4;
      for (let at = start; at < start + width * 4; at += 4) {
        shown[at] = pixels[at + b]!;
        shown[at + 1] = pixels[at + g]!;
        shown[at + 2] = pixels[at + r]!;
        shown[at + 3] = a === undefined ? 255 : pixels[at + a]!;
      }
    }
  }

  /** A copy in B G R A; opaque where the format has no alpha. */
  image(): Uint8Array<ArrayBuffer> {
    const image = this.shown.slice();
    if (GPU_FORMATS.get(this.format)!.a === undefined) {
      for (let at = 3; at < image.length; at += 4) image[at] = 255;
    }
    return image;
  }
}

/** The guest's resources, bounded in number, in bytes and in pieces of backing. */
export class ResourceTable {
  readonly #memory: GuestMemory;
  #resources = new Map<number, GpuResource>();
  #totalBytes = 0;
  #totalBacking = 0;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  get(id: number): GpuResource | undefined {
    return this.#resources.get(id);
  }

  create(id: number, format: number, width: number, height: number): ResourceError | undefined {
    if (id === 0 || this.#resources.has(id)) return 'id';
    if (!GPU_FORMATS.has(format) || width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE)
      return 'parameter';
    const bytes = width * height * 4;
    if (this.#resources.size >= MAX_RESOURCES || bytes > MAX_RESOURCE_BYTES) return 'memory';
    if (bytes > MAX_TOTAL_BYTES - this.#totalBytes) return 'memory';
    this.#resources.set(id, new GpuResource(format, width, height));
    this.#totalBytes += bytes;
    return undefined;
  }

  remove(id: number): boolean {
    const resource = this.#resources.get(id);
    if (resource === undefined) return false;
    this.detach(resource);
    this.#resources.delete(id);
    this.#totalBytes -= resource.pixels.length;
    return true;
  }

  /** Every piece must be RAM; empty ones are left out. */
  attach(resource: GpuResource, entries: readonly BackingEntry[]): ResourceError | undefined {
    if (resource.backing !== undefined) return 'backed';
    if (entries.length > MAX_TOTAL_BACKING - this.#totalBacking) return 'memory';
    const addresses: number[] = [];
    const lengths: number[] = [];
    for (const { address, length } of entries) {
      // Above 2^53 a number is not exact, and not RAM either.
      if (!this.#memory.contains(Number(address), length)) return 'parameter';
      if (length === 0) continue;
      addresses.push(Number(address));
      lengths.push(length);
    }
    resource.backing = new Backing(addresses, lengths);
    this.#totalBacking += lengths.length;
    return undefined;
  }

  detach(resource: GpuResource): void {
    this.#totalBacking -= resource.backing?.lengths.length ?? 0;
    resource.backing = undefined;
  }

  clear(): void {
    this.#resources.clear();
    this.#totalBytes = 0;
    this.#totalBacking = 0;
  }

  replace(other: ResourceTable): void {
    this.#resources = other.#resources;
    this.#totalBytes = other.#totalBytes;
    this.#totalBacking = other.#totalBacking;
  }

  save(): StateValue {
    return [...this.#resources].map(([id, { format, width, height, pixels, backing }]) => ({
      id,
      format,
      width,
      height,
      pixels: pixels.slice(),
      // Without backing: no list; with one: address and length of each piece
      backings: backing === undefined ? [] : [backing.addresses.map((at, index) => [at, backing.lengths[index]!])],
    }));
  }

  /** Reads `resources` of an untrusted state under the same limits that the guest has. */
  load(reader: StateReader): void {
    reader.list('resources', MAX_RESOURCES, (item, where) => {
      const fields = new StateReader(where, item);
      const id = fields.u32('id');
      const width = fields.integer('width', 1, MAX_SIDE);
      const height = fields.integer('height', 1, MAX_SIDE);
      // The pixels must be there before as much memory is taken for them.
      const pixels = fields.bytes('pixels', width * height * 4, width * height * 4);
      const error = this.create(id, fields.u32('format'), width, height);
      if (error !== undefined) throw new StateError(where, `impossible resource: ${error}`);
      const resource = this.#resources.get(id)!;
      resource.pixels.set(pixels);
      resource.convert({ x: 0, y: 0, width, height });
      fields.list('backings', 1, (backing, at) => {
        if (!Array.isArray(backing) || backing.length > MAX_BACKING_ENTRIES) throw new StateError(at, 'not a backing');
        const refused = this.attach(resource, backing.map(readEntry));
        if (refused !== undefined) throw new StateError(at, `impossible backing: ${refused}`);
      });
    });
  }
}

/** What is no pair of numbers becomes an address that is not RAM. */
function readEntry(pair: unknown): BackingEntry {
  const [address, length] = Array.isArray(pair) ? pair : [];
  const valid = Number.isSafeInteger(address) && Number.isSafeInteger(length);
  return valid ? { address: BigInt(address as number), length: length as number } : { address: 0n, length: 0 };
}
