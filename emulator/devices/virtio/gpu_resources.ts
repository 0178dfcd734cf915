import { GPU_FORMATS, type GpuRectangle } from '../../../protocols/virtio/mod.ts';
import type { GuestMemory } from '../../memory/guest_memory.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';

/** No side of a resource is longer, in `pixels` */
export const MAX_SIDE = 8192;
const MAX_RESOURCES = 256;
/** All resources together, in `bytes` */
const MAX_TOTAL_BYTES = 256 * 1024 * 1024;
const MAX_BACKING = 16384;

/** A piece of guest RAM, checked when it was attached */
export interface Backing {
  readonly address: number;
  readonly length: number;
}

export type ResourceError = 'id' | 'parameter' | 'memory';

/** A picture that the guest made: its own pixels, and the same as the display shows them (B G R X). */
export class GpuResource {
  readonly format: number;
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array<ArrayBuffer>;
  /** The same memory where the guest's format is the display's */
  readonly shown: Uint8Array<ArrayBuffer>;
  backing: readonly Backing[] = [];

  constructor(format: number, width: number, height: number) {
    this.format = format;
    this.width = width;
    this.height = height;
    this.pixels = new Uint8Array(width * height * 4);
    this.shown = this.#isNative ? this.pixels : new Uint8Array(width * height * 4);
  }

  get #isNative(): boolean {
    const { b, g, r } = GPU_FORMATS.get(this.format)!;
    return b === 0 && g === 1 && r === 2;
  }

  /** Brings what is shown up to date in a rectangle inside the resource. */
  convert({ x, y, width, height }: GpuRectangle): void {
    if (this.shown === this.pixels) return;
    const { b, g, r, a } = GPU_FORMATS.get(this.format)!;
    for (let row = y; row < y + height; row++) {
      const start = (row * this.width + x) * 4;
      for (let at = start; at < start + width * 4; at += 4) {
        this.shown[at] = this.pixels[at + b]!;
        this.shown[at + 1] = this.pixels[at + g]!;
        this.shown[at + 2] = this.pixels[at + r]!;
        this.shown[at + 3] = a === undefined ? 255 : this.pixels[at + a]!;
      }
    }
  }
}

/** The guest's resources, bounded in number and in bytes. */
export class ResourceTable {
  #resources = new Map<number, GpuResource>();
  #totalBytes = 0;

  get(id: number): GpuResource | undefined {
    return this.#resources.get(id);
  }

  create(id: number, format: number, width: number, height: number): ResourceError | undefined {
    if (id === 0 || this.#resources.has(id)) return 'id';
    if (!GPU_FORMATS.has(format) || width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE)
      return 'parameter';
    const bytes = width * height * 4;
    if (this.#resources.size >= MAX_RESOURCES || bytes > MAX_TOTAL_BYTES - this.#totalBytes) return 'memory';
    this.#resources.set(id, new GpuResource(format, width, height));
    this.#totalBytes += bytes;
    return undefined;
  }

  remove(id: number): boolean {
    const resource = this.#resources.get(id);
    if (resource === undefined) return false;
    this.#resources.delete(id);
    this.#totalBytes -= resource.pixels.length;
    return true;
  }

  clear(): void {
    this.#resources.clear();
    this.#totalBytes = 0;
  }

  replace(other: ResourceTable): void {
    this.#resources = other.#resources;
    this.#totalBytes = other.#totalBytes;
  }

  save(): StateValue {
    return [...this.#resources].map(([id, { format, width, height, pixels, backing }]) => ({
      id,
      format,
      width,
      height,
      pixels,
      backing: backing.map(({ address, length }) => [address, length]),
    }));
  }

  /** Reads `resources` of an untrusted state under the same limits that the guest has. */
  load(reader: StateReader, memory: GuestMemory): void {
    reader.list('resources', MAX_RESOURCES, (item, where) => {
      const fields = new StateReader(where, item);
      const id = fields.u32('id');
      const width = fields.integer('width', 1, MAX_SIDE);
      const height = fields.integer('height', 1, MAX_SIDE);
      const error = this.create(id, fields.u32('format'), width, height);
      if (error !== undefined) throw new StateError(where, `impossible resource: ${error}`);
      const resource = this.#resources.get(id)!;
      resource.pixels.set(fields.bytes('pixels', resource.pixels.length, resource.pixels.length));
      resource.convert({ x: 0, y: 0, width, height });
      resource.backing = fields.list('backing', MAX_BACKING, (pair, at) => {
        const [address, length] = Array.isArray(pair) ? pair : [];
        if (typeof address !== 'number' || typeof length !== 'number' || !memory.contains(address, length)) {
          throw new StateError(at, 'not in RAM');
        }
        return { address, length };
      });
    });
  }
}

/** Copies from a backing at `offset`; bytes that it does not have are left alone. */
export function readBacking(memory: GuestMemory, backing: readonly Backing[], offset: number, into: Uint8Array): void {
  let skip = offset;
  let done = 0;
  for (const { address, length } of backing) {
    if (skip >= length) {
      skip -= length;
      continue;
    }
    const piece = Math.min(length - skip, into.length - done);
    memory.readInto(address + skip, into.subarray(done, done + piece));
    done += piece;
    skip = 0;
    if (done === into.length) return;
  }
}
