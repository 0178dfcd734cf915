import { BytePool, WireError } from '../../../protocols/bytes/mod.ts';
import {
  decodeVirtioBlkRequest,
  decodeVirtioBlkSegments,
  encodeVirtioBlkConfig,
  featureMask,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_REQ_HEADER_BYTES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_WRITE_ZEROES,
  VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
  VIRTIO_ID_BLOCK,
  type VirtioBlkRequest,
} from '../../../protocols/virtio/mod.ts';
import type { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import { type BlockBackend, BlockError } from '../backends.ts';
import type { Chain } from './chain.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import type { VirtQueue } from './queue.ts';

const QUEUE_SIZE = 256;
/** Header and status take two descriptors of a chain */
const SEG_MAX = QUEUE_SIZE - 2;
/** Largest segment that a driver should make, in `bytes` */
const SIZE_MAX = 1024 * 1024;
/** Data of one request, in `bytes` */
const MAX_REQUEST_BYTES = 32 * 1024 * 1024;
/** Data of all requests in flight, in `bytes`; one more request may start below it */
const MAX_INFLIGHT_BYTES = 64 * 1024 * 1024;
const MAX_INFLIGHT_REQUESTS = 64;
/** Data buffers that are kept for the next requests, in `bytes` */
const MAX_IDLE_BYTES = 4 * 1024 * 1024;
/** Per segment of discard and write-zeroes: 1 GiB */
const MAX_ZERO_SECTORS = 0x20_0000;
const MAX_ZERO_SEGMENTS = 16;

export interface VirtioBlkOptions extends VirtioDeviceOptions {
  readonly backend: BlockBackend;
  /** What VIRTIO_BLK_T_GET_ID gives, at most 20 ASCII characters (default: the id) */
  readonly serial?: string;
}

/**
 * Block device (virtio 1.2 §5.2). Requests run side by side in the backend and end in any order; data is
 * copied out of the guest before a write starts and into it after a read has ended, so a reset at any time
 * leaves no request that could still touch guest memory.
 */
export class VirtioBlk extends VirtioDevice {
  readonly #backend: BlockBackend;
  readonly #sectors: bigint;
  readonly #serial: Uint8Array;
  readonly #config: Uint8Array;
  readonly #buffers = new BytePool((lengthBytes) => new Uint8Array(lengthBytes), MAX_IDLE_BYTES);
  #inFlightBytes = 0;
  #inFlightRequests = 0;
  #throttled = false;

  constructor(options: VirtioBlkOptions) {
    const { backend } = options;
    const features = [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
    features.push(VIRTIO_BLK_F_TOPOLOGY);
    const discards = backend.discard !== undefined && !backend.readOnly;
    const zeroes = backend.writeZeroes !== undefined && !backend.readOnly;
    if (backend.readOnly) features.push(VIRTIO_BLK_F_RO);
    if (discards) features.push(VIRTIO_BLK_F_DISCARD);
    if (zeroes) features.push(VIRTIO_BLK_F_WRITE_ZEROES);
    super(options, {
      name: 'virtio-blk',
      virtioId: VIRTIO_ID_BLOCK,
      features: featureMask(...features),
      queues: [{ maxSize: QUEUE_SIZE }],
    });
    this.#backend = backend;
    this.#sectors = BigInt(Math.floor(backend.sizeBytes / VIRTIO_BLK_SECTOR_BYTES));
    this.#serial = new Uint8Array(VIRTIO_BLK_ID_BYTES);
    this.#serial.set(new TextEncoder().encode(options.serial ?? options.id).subarray(0, VIRTIO_BLK_ID_BYTES));
    this.#config = encodeVirtioBlkConfig({
      capacity: this.#sectors,
      sizeMax: SIZE_MAX,
      segMax: SEG_MAX,
      blkSize: backend.blockBytes,
      physicalBlockExp: 0,
      minIoSize: 1,
      optIoSize: 0,
      maxDiscardSectors: discards ? MAX_ZERO_SECTORS : 0,
      maxDiscardSeg: discards ? MAX_ZERO_SEGMENTS : 0,
      discardSectorAlignment: discards ? backend.blockBytes / VIRTIO_BLK_SECTOR_BYTES : 0,
      maxWriteZeroesSectors: zeroes ? MAX_ZERO_SECTORS : 0,
      maxWriteZeroesSeg: zeroes ? MAX_ZERO_SEGMENTS : 0,
      writeZeroesMayUnmap: zeroes ? 1 : 0,
    });
  }

  protected config(): Uint8Array {
    return this.#config;
  }

  protected serve(queue: VirtQueue): void {
    this.drain(
      queue,
      (chain) => this.#start(queue, chain),
      () => {
        this.#throttled = this.#inFlightRequests >= MAX_INFLIGHT_REQUESTS || this.#inFlightBytes >= MAX_INFLIGHT_BYTES;
        return !this.#throttled;
      },
    );
  }

  #start(queue: VirtQueue, chain: Chain): void {
    if (chain.readableBytes < VIRTIO_BLK_REQ_HEADER_BYTES || chain.writableBytes < 1) {
      // Without a status byte there is no way to answer.
      this.fail('Cannot read request: the chain has no room for header and status');
      return;
    }
    const request = decodeVirtioBlkRequest(chain.read(0, VIRTIO_BLK_REQ_HEADER_BYTES));
    const dataBytes = chain.readableBytes - VIRTIO_BLK_REQ_HEADER_BYTES + chain.writableBytes - 1;
    if (dataBytes > MAX_REQUEST_BYTES) {
      this.#end(queue, chain, VIRTIO_BLK_S_IOERR, undefined);
      return;
    }
    this.#inFlightBytes += dataBytes;
    this.#inFlightRequests++;
    void this.track(this.#run(queue, chain, request, dataBytes));
  }

  async #run(queue: VirtQueue, chain: Chain, request: VirtioBlkRequest, dataBytes: number): Promise<void> {
    let status: number = VIRTIO_BLK_S_IOERR;
    let input: Uint8Array | undefined;
    let lent: Uint8Array<ArrayBuffer> | undefined;
    const lend = (lengthBytes: number): Uint8Array => {
      lent = this.#buffers.take(lengthBytes);
      return lent.subarray(0, lengthBytes);
    };
    try {
      const done = await this.#perform(chain, request, lend);
      if (typeof done === 'number') status = done;
      else {
        status = VIRTIO_BLK_S_OK;
        input = done;
      }
    } catch (error) {
      // Not given back: who has failed may not be done with it.
      lent = undefined;
      // The backend's own refusals are the guest's I/O error; anything else is that and news for the log.
      if (!(error instanceof BlockError || error instanceof WireError)) this.report(`backend: ${String(error)}`);
    }
    this.#inFlightBytes -= dataBytes;
    this.#inFlightRequests--;
    this.guard(() => this.#end(queue, chain, status, input));
    if (lent !== undefined) this.#buffers.give(lent);
    if (this.#throttled) this.notify(queue.index);
  }

  /** Writes data and status into the chain; a read that failed gives zeroes, never what lay in a buffer. */
  #end(queue: VirtQueue, chain: Chain, status: number, input: Uint8Array | undefined): void {
    const statusAt = chain.writableBytes - 1;
    if (input !== undefined) chain.write(0, input);
    const zeroesAt = input?.length ?? 0;
    if (zeroesAt < statusAt) chain.fill(zeroesAt, statusAt - zeroesAt);
    chain.write(statusAt, Uint8Array.of(status));
    this.finish(queue, chain, chain.writableBytes);
  }

  /** A status, or the bytes for the device-writable part. `lend` gives a buffer for the data, once. */
  async #perform(
    chain: Chain,
    request: VirtioBlkRequest,
    lend: (lengthBytes: number) => Uint8Array,
  ): Promise<number | Uint8Array> {
    const backend = this.#backend;
    const outBytes = chain.readableBytes - VIRTIO_BLK_REQ_HEADER_BYTES;
    const inBytes = chain.writableBytes - 1;
    switch (request.type) {
      case VIRTIO_BLK_T_IN: {
        const offset = this.#range(request.sector, inBytes);
        if (offset === undefined) return VIRTIO_BLK_S_IOERR;
        const data = lend(inBytes);
        await backend.read(offset, data);
        return data;
      }
      case VIRTIO_BLK_T_OUT: {
        const offset = this.#range(request.sector, outBytes);
        if (offset === undefined || backend.readOnly) return VIRTIO_BLK_S_IOERR;
        const data = lend(outBytes);
        chain.readInto(VIRTIO_BLK_REQ_HEADER_BYTES, data);
        // A driver without FLUSH relies on write-through (§5.2.6.2).
        await backend.write(offset, data, { fua: !this.negotiated(VIRTIO_BLK_F_FLUSH) });
        return VIRTIO_BLK_S_OK;
      }
      case VIRTIO_BLK_T_FLUSH:
        await backend.flush();
        return VIRTIO_BLK_S_OK;
      case VIRTIO_BLK_T_GET_ID:
        return this.#serial.subarray(0, Math.min(inBytes, VIRTIO_BLK_ID_BYTES));
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES:
        return this.#zero(request.type, chain, outBytes);
      default:
        return VIRTIO_BLK_S_UNSUPP;
    }
  }

  async #zero(type: number, chain: Chain, outBytes: number): Promise<number> {
    const backend = this.#backend;
    const isDiscard = type === VIRTIO_BLK_T_DISCARD;
    if (!this.negotiated(isDiscard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES)) return VIRTIO_BLK_S_UNSUPP;
    // The length is checked before anything is copied.
    if (outBytes > 16 * MAX_ZERO_SEGMENTS) return VIRTIO_BLK_S_IOERR;
    const segments = decodeVirtioBlkSegments(chain.read(VIRTIO_BLK_REQ_HEADER_BYTES, outBytes), MAX_ZERO_SEGMENTS);
    const ranges: { offset: number; lengthBytes: number; mayUnmap: boolean }[] = [];
    for (const { sector, sectors, flags } of segments) {
      // §5.2.6.2: unknown flags, and the unmap flag on a discard, are not supported.
      if ((flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) !== 0 || (isDiscard && flags !== 0)) return VIRTIO_BLK_S_UNSUPP;
      if (sectors > MAX_ZERO_SECTORS) return VIRTIO_BLK_S_IOERR;
      const lengthBytes = sectors * VIRTIO_BLK_SECTOR_BYTES;
      const offset = this.#range(sector, lengthBytes);
      if (offset === undefined) return VIRTIO_BLK_S_IOERR;
      if (lengthBytes > 0) ranges.push({ offset, lengthBytes, mayUnmap: flags !== 0 });
    }
    for (const { offset, lengthBytes, mayUnmap } of ranges) {
      if (isDiscard) await backend.discard?.(offset, lengthBytes);
      else await backend.writeZeroes?.(offset, lengthBytes, { mayUnmap });
    }
    return VIRTIO_BLK_S_OK;
  }

  /** The byte offset of a range that lies on the disk, in whole blocks. */
  #range(sector: bigint, lengthBytes: number): number | undefined {
    if (lengthBytes % this.#backend.blockBytes !== 0) return undefined;
    const sectors = BigInt(lengthBytes / VIRTIO_BLK_SECTOR_BYTES);
    if (sectors > this.#sectors || sector > this.#sectors - sectors) return undefined;
    const offset = Number(sector) * VIRTIO_BLK_SECTOR_BYTES;
    return offset % this.#backend.blockBytes === 0 ? offset : undefined;
  }

  protected saveModel(): StateValue {
    return { sectors: this.#sectors };
  }

  protected prepareModel(reader: StateReader): () => void {
    const sectors = reader.u64('sectors');
    if (sectors !== this.#sectors) {
      throw new StateError(`${this.stateName}.model.sectors`, `${sectors}, this disk has ${this.#sectors}`);
    }
    return () => {};
  }
}
