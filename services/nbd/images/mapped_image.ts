import { type Extent, STATE } from '../../../protocols/nbd/mod.ts';
import type { BlockMap, Place } from './block_map.ts';
import { type DiskImage, ImageError, type StatusBudget, type ZeroOptions } from './disk_image.ts';
import { ExtentList } from './extent_list.ts';
import type { ImageLock } from './image_lock.ts';
import { InPlaceGate } from './in_place_gate.ts';
import type { ImageFile } from './qcow2/mod.ts';
import { CoreAtHand, StorageReads } from './slow_reason.ts';
import { zeroes } from './zeroes.ts';

/** Larger accesses always go to the pool, in `bytes` */
const MAX_IN_PLACE_BYTES = 1 << 20;
/** Runs that one block-status request looks at; the client asks again for the rest */
const MAX_STATUS_RUNS = 1 << 16;
const PIECE_BYTES = 1 << 20;

export interface MappedImageOptions {
  readonly readOnly: boolean;
  /** What is under the image where it has nothing: opened by the caller. Closed with the image */
  readonly backing?: DiskImage;
  /** Refuse an image that another writer has open (default true) */
  readonly lock?: boolean;
  /** Not locked and not written to until activate(), which reads it anew */
  readonly inactive?: boolean;
}

interface Run {
  readonly at: number;
  readonly place: Place;
}

/**
 * A disk image of any format that keeps blocks in a file and a table of where they are. The format's BlockMap says
 * where; reading, writing, what is under the image, locks and extents are the same for all of them. Blocks never
 * move and never go, so reading needs no lock.
 */
export class MappedImage<M extends BlockMap = BlockMap> implements DiskImage {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number = 1;
  readonly canFastZero: boolean = false;
  readonly #file: ImageFile;
  readonly #load: () => Promise<M>;
  readonly #backing: DiskImage | undefined;
  readonly #wantsLock: boolean;
  readonly #reads = new InPlaceGate(new StorageReads());
  readonly #writes = new InPlaceGate(new CoreAtHand());
  #map: M;
  #lock: ImageLock | undefined;
  #active = false;
  #closed = false;
  /** Allocations and flushes, one after the other */
  #turn: Promise<unknown> = Promise.resolve();
  #unpacked: { key: number; bytes: Uint8Array } | undefined;

  private constructor(file: ImageFile, load: () => Promise<M>, map: M, options: MappedImageOptions) {
    this.#file = file;
    this.#load = load;
    this.#map = map;
    this.#backing = options.backing;
    this.sizeBytes = map.sizeBytes;
    this.readOnly = options.readOnly;
    this.#wantsLock = !options.readOnly && options.lock !== false;
  }

  /** Opens the image in `file`, which is closed where that fails; `load` reads its tables, at every activation. */
  static async open<T extends BlockMap>(
    file: ImageFile,
    load: () => Promise<T>,
    options: MappedImageOptions,
  ): Promise<MappedImage<T>> {
    let map: T | undefined;
    try {
      map = await load();
      if (!options.readOnly && map.changes === undefined) {
        throw new ImageError(
          'EINVAL',
          'Cannot open the image for writing: images of this kind are only read; open it read-only',
        );
      }
      const image = new MappedImage<T>(file, load, map, options);
      if (!options.inactive) await image.#activate(map);
      return image;
    } catch (error) {
      await map?.close?.();
      await file.close();
      throw error;
    }
  }

  /** What the format says of the image */
  get map(): M {
    return this.#map;
  }

  async activate(): Promise<void> {
    this.#open();
    if (!this.#active) await this.#activate(undefined);
  }

  async inactivate(): Promise<void> {
    this.#active = false;
    await this.flush();
    const lock = this.#lock;
    this.#lock = undefined;
    await lock?.release();
  }

  readNow(offset: number, into: Uint8Array, alone = false): boolean {
    this.#open();
    if (into.length > MAX_IN_PLACE_BYTES) return false;
    const runs = this.#runsNow(offset, into.length);
    const simple = ({ place: { kind } }: Run): boolean =>
      kind === 'data' || kind === 'zero' || (kind === 'hole' && this.#backing === undefined);
    if (runs === undefined || !runs.every(simple) || !this.#reads.enter(alone)) return false;
    try {
      for (const { at, place } of runs) {
        const piece = into.subarray(at - offset, at - offset + place.lengthBytes);
        if (place.kind === 'data') place.file.readNow(place.host, piece);
        else piece.fill(0);
      }
    } finally {
      this.#reads.done(into.length);
    }
    return true;
  }

  writeNow(offset: number, data: Uint8Array): boolean {
    this.#writable();
    if (data.length > MAX_IN_PLACE_BYTES) return false;
    const runs = this.#runsNow(offset, data.length);
    if (runs === undefined || !runs.every(({ place }) => isReady(place)) || !this.#writes.enter()) return false;
    try {
      for (const { at, place } of runs) {
        if (place.kind === 'data') {
          place.file.writeNow(place.host, data.subarray(at - offset, at - offset + place.lengthBytes));
        }
      }
    } finally {
      this.#writes.done(data.length);
    }
    return true;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#open();
    for (let done = 0; done < into.length; ) {
      const place = await this.#placeAt(offset + done, into.length - done);
      const piece = into.subarray(done, done + place.lengthBytes);
      await this.#readPlace(offset + done, place, piece);
      done += place.lengthBytes;
    }
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#writable();
    for (let done = 0; done < data.length; ) {
      const at = offset + done;
      let place = await this.#placeAt(at, data.length - done);
      if (!isReady(place)) {
        await this.#inTurn(async () => {
          // Another writer may have been here first.
          if (!isReady(await this.#placeAt(at, 1))) await this.#map.changes?.allocate(at);
        });
        place = await this.#placeAt(at, data.length - done);
      }
      if (!isReady(place)) throw new ImageError('EIO', 'Cannot write: the image gives no place for it');
      await place.file.write(place.host, data.subarray(done, done + place.lengthBytes));
      done += place.lengthBytes;
    }
  }

  async flush(): Promise<void> {
    this.#open();
    if (!this.readOnly) await this.#inTurn(async () => this.#map.changes?.flush());
  }

  async discard(_offset: number, _lengthBytes: number): Promise<void> {
    // "NBD_CMD_TRIM is a hint": the formats have no way to give a block back.
    this.#writable();
  }

  async writeZeroes(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    this.#writable();
    if (options.fast) throw new ImageError('ENOTSUP', 'Cannot write zeroes fast: the blocks must be written');
    for (let done = 0; done < lengthBytes; ) {
      const place = await this.#placeAt(offset + done, lengthBytes - done);
      const zeroAlready = place.kind === 'zero' || (place.kind === 'hole' && this.#backing === undefined);
      const length = zeroAlready ? place.lengthBytes : Math.min(place.lengthBytes, PIECE_BYTES);
      if (!zeroAlready) await this.write(offset + done, zeroes().subarray(0, length));
      done += length;
    }
  }

  async blockStatus(
    offset: number,
    lengthBytes: number,
    maxExtents: number,
    budget: StatusBudget = { left: MAX_STATUS_RUNS },
  ): Promise<Extent[]> {
    this.#open();
    const list = new ExtentList(maxExtents);
    const backing = this.#backing;
    for (let at = offset; at < offset + lengthBytes && (at === offset || budget.left > 0); budget.left--) {
      const place = await this.#placeAt(at, offset + lengthBytes - at);
      if (place.kind === 'hole' && backing !== undefined) {
        if (!(await list.addBelow(backing, at, place.lengthBytes, budget))) break;
      } else {
        const flags = place.kind === 'hole' ? STATE.HOLE | STATE.ZERO : place.kind === 'zero' ? STATE.ZERO : 0;
        if (!list.add(place.lengthBytes, flags)) break;
      }
      at += place.lengthBytes;
    }
    return list.extents;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#map.close?.();
    await this.#file.close();
    await this.#lock?.release();
    await this.#backing?.close();
  }

  /** `fresh`: the tables as they were read just now, before anybody else could be locked out */
  async #activate(fresh: M | undefined): Promise<void> {
    if (this.#wantsLock) this.#lock = await this.#file.lock();
    try {
      if (fresh === undefined || this.#wantsLock) {
        // Whoever wrote until now has changed the tables.
        this.#file.refresh();
        const map = await this.#load();
        const old = this.#map;
        this.#map = map;
        this.#unpacked = undefined;
        await old.close?.();
        if (map.sizeBytes !== this.sizeBytes) {
          throw new ImageError('EINVAL', 'Cannot activate the image: its size has changed');
        }
      }
    } catch (error) {
      await this.#lock?.release();
      this.#lock = undefined;
      throw error;
    }
    this.#active = true;
  }

  async #readPlace(offset: number, place: Place, piece: Uint8Array): Promise<void> {
    switch (place.kind) {
      case 'data':
        return place.file.read(place.host, piece);
      case 'zero':
        piece.fill(0);
        return;
      case 'hole': {
        const there = Math.max(0, Math.min(piece.length, (this.#backing?.sizeBytes ?? 0) - offset));
        if (there > 0) await this.#backing?.read(offset, piece.subarray(0, there));
        piece.fill(0, there);
        return;
      }
      case 'packed': {
        if (this.#unpacked?.key !== place.key) this.#unpacked = { key: place.key, bytes: await place.unpack() };
        const { bytes } = this.#unpacked;
        if (place.skip + piece.length > bytes.length) {
          throw new ImageError('EIO', `Cannot read a compressed block: ${bytes.length} bytes, expected more`);
        }
        piece.set(bytes.subarray(place.skip, place.skip + piece.length));
      }
    }
  }

  /** Undefined where it needs more than memory, or is wrong: the way that may wait reports that. */
  #runsNow(offset: number, lengthBytes: number): Run[] | undefined {
    const runs: Run[] = [];
    try {
      for (let at = offset; at < offset + lengthBytes; ) {
        const place = this.#map.lookupNow(at, offset + lengthBytes - at);
        if (place === undefined) return undefined;
        runs.push({ at, place });
        at += place.lengthBytes;
      }
    } catch (error) {
      if (error instanceof ImageError) return undefined;
      throw error;
    }
    return runs;
  }

  async #placeAt(offset: number, lengthBytes: number): Promise<Place> {
    const place = this.#map.lookupNow(offset, lengthBytes) ?? (await this.#map.lookup(offset, lengthBytes));
    if (place.lengthBytes < 1 || place.lengthBytes > lengthBytes) throw new RangeError('A block map gave a wrong run');
    return place;
  }

  #inTurn<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(run);
    this.#turn = result.catch(() => {});
    return result;
  }

  #open(): void {
    if (this.#closed) throw new ImageError('ESHUTDOWN', 'Cannot access the image: it is closed');
  }

  #writable(): void {
    this.#open();
    if (this.readOnly) throw new ImageError('EPERM', 'Cannot write: image is read-only');
    if (!this.#active) throw new ImageError('EPERM', 'Cannot write: another machine owns the image now');
  }
}

function isReady(place: Place): place is Place & { kind: 'data' } {
  return place.kind === 'data' && place.unready !== true;
}
