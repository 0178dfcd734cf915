import type { Observable } from 'rxjs';
import { Subject } from 'rxjs/internal/Subject';
import {
  decodeVirtioBalloonPages,
  decodeVirtioBalloonStats,
  encodeVirtioBalloonConfig,
  featureMask,
  VIRTIO_BALLOON_ACTUAL,
  VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
  VIRTIO_BALLOON_F_STATS_VQ,
  VIRTIO_BALLOON_MAX_STATS,
  VIRTIO_BALLOON_PAGE_BYTES,
  VIRTIO_BALLOON_STAT_BYTES,
  VIRTIO_ID_BALLOON,
  type VirtioBalloonStat,
} from '../../../protocols/virtio/mod.ts';
import { RAM_BASE } from '../../memory/guest_memory.ts';
import type { StateReader } from '../../state/read_state.ts';
import type { StateValue } from '../../state/state.ts';
import type { Chain } from './chain.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import type { VirtQueue } from './queue.ts';

const INFLATE_QUEUE = 0;
const STATS_QUEUE = 2;
/** Page numbers in one chain; Linux sends 256. Bounds what one chain makes us clear: 4 MiB */
const MAX_CHAIN_PAGES = 1024;

/**
 * Traditional balloon (virtio 1.2 §5.5). Pages that the guest gives up are cleared: they cost next to nothing
 * in a migration or a snapshot from then on. The guest alone decides how far it follows the target.
 */
export class VirtioBalloon extends VirtioDevice {
  /** Each time the guest answers {@link requestStats}, and once when its driver starts */
  readonly stats: Observable<readonly VirtioBalloonStat[]>;
  readonly #stats = new Subject<readonly VirtioBalloonStat[]>();
  readonly #ramPages: number;
  #targetPages = 0;
  #actualPages = 0;

  constructor(options: VirtioDeviceOptions) {
    super(options, {
      name: 'virtio-balloon',
      virtioId: VIRTIO_ID_BALLOON,
      features: featureMask(VIRTIO_BALLOON_F_STATS_VQ, VIRTIO_BALLOON_F_DEFLATE_ON_OOM),
      queues: [
        { maxSize: 128, maxChainBytes: MAX_CHAIN_PAGES * 4 },
        { maxSize: 128, maxChainBytes: MAX_CHAIN_PAGES * 4 },
        { maxSize: 128, maxChainBytes: VIRTIO_BALLOON_MAX_STATS * VIRTIO_BALLOON_STAT_BYTES },
      ],
    });
    this.#ramPages = options.memory.sizeBytes / VIRTIO_BALLOON_PAGE_BYTES;
    this.stats = this.#stats.asObservable();
  }

  /** What the guest says that it gave up, in `bytes` */
  get actualBytes(): number {
    return this.#actualPages * VIRTIO_BALLOON_PAGE_BYTES;
  }

  /** Asks the guest to give up `bytes` of its RAM in all, in whole pages; 0 gives everything back. */
  setTargetBytes(bytes: number): void {
    const pages = Math.floor(bytes / VIRTIO_BALLOON_PAGE_BYTES);
    if (!Number.isSafeInteger(pages) || pages < 0 || pages > this.#ramPages) {
      throw new RangeError(`Cannot set the balloon to ${bytes} bytes: RAM is ${this.memory.sizeBytes}`);
    }
    if (pages === this.#targetPages) return;
    this.#targetPages = pages;
    this.configChanged();
  }

  /** Asks for new statistics (§5.5.6.3): the device uses the buffer, and the driver fills it again. */
  requestStats(): void {
    const queue = this.queues[STATS_QUEUE]!;
    if (!this.live) return;
    this.guard(() => {
      const chain = queue.pop();
      if (chain === undefined) return;
      this.finish(queue, chain, 0);
      // Looking at the empty ring asks for the notification that says when the answer is there (§2.7.10).
      this.#readStats(queue);
    });
  }

  protected config(): Uint8Array {
    return encodeVirtioBalloonConfig(this.#targetPages, this.#actualPages);
  }

  override writeConfig(offset: number, size: number, value: number): void {
    if (offset !== VIRTIO_BALLOON_ACTUAL || size !== 4) return;
    this.#actualPages = Math.min(value, this.#ramPages);
  }

  protected serve(queue: VirtQueue): void {
    if (queue.index === STATS_QUEUE) {
      this.#readStats(queue);
      return;
    }
    this.drain(queue, (chain) => {
      const pages = decodeVirtioBalloonPages(chain.read(0, chain.readableBytes), MAX_CHAIN_PAGES);
      if (queue.index === INFLATE_QUEUE) this.#clear(pages);
      this.finish(queue, chain, 0);
    });
  }

  /** Until the chain is used, the driver keeps these pages from everybody, itself included (§5.5.6). */
  #clear(pages: readonly number[]): void {
    for (const page of pages) {
      const address = page * VIRTIO_BALLOON_PAGE_BYTES;
      // A page number that is no RAM gives up nothing
      if (address < RAM_BASE || !this.memory.contains(address, VIRTIO_BALLOON_PAGE_BYTES)) continue;
      this.memory.fill(address, VIRTIO_BALLOON_PAGE_BYTES, 0);
    }
  }

  /** Only looks at the buffer: it stays in the ring, also over a move, until somebody wants the next statistics. */
  #readStats(queue: VirtQueue): void {
    const chain: Chain | undefined = queue.peek();
    if (chain !== undefined) this.#stats.next(decodeVirtioBalloonStats(chain.read(0, chain.readableBytes)));
  }

  protected override resetModel(): void {
    this.#actualPages = 0;
  }

  protected saveModel(): StateValue {
    return { target: this.#targetPages, actual: this.#actualPages };
  }

  protected prepareModel(reader: StateReader): () => void {
    const target = reader.integer('target', 0, this.#ramPages);
    const actual = reader.integer('actual', 0, this.#ramPages);
    return () => {
      this.#targetPages = target;
      this.#actualPages = actual;
    };
  }
}
