import {
  decodeVirtioNetHeader,
  encodeVirtioNetConfig,
  encodeVirtioNetHeader,
  featureMask,
  VIRTIO_ID_NET,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_HDR_BYTES,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_S_LINK_UP,
} from '../../../protocols/virtio/mod.ts';
import type { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { Chain } from './chain.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import type { VirtQueue } from './queue.ts';

const RECEIVE_QUEUE = 0;
const TRANSMIT_QUEUE = 1;
const MTU = 1500;
/** Two addresses and a type, in `bytes` */
const ETHERNET_HEADER_BYTES = 14;
/** With a VLAN tag, in `bytes` */
const MAX_FRAME_BYTES = MTU + ETHERNET_HEADER_BYTES + 4;
/** A driver may give larger buffers than a frame needs; without offloads none is larger than this */
const MAX_CHAIN_BYTES = 128 * 1024;
/** Frames that wait for the guest's buffers; the next ones are dropped, as by any full switch */
const MAX_WAITING_FRAMES = 256;

/** No checksum, no segmentation, one buffer: we negotiate no offloads */
const PLAIN_HEADER = encodeVirtioNetHeader({
  flags: 0,
  gsoType: VIRTIO_NET_HDR_GSO_NONE,
  headerLength: 0,
  gsoSize: 0,
  checksumStart: 0,
  checksumOffset: 0,
  buffers: 1, // §5.1.6.4.1: always 1 without VIRTIO_NET_F_MRG_RXBUF
});

export interface VirtioNetOptions extends VirtioDeviceOptions {
  /** Six bytes */
  readonly mac: Uint8Array;
  /** Gets each frame that the guest sends, as a private copy; without it frames go nowhere */
  readonly sink?: (frame: Uint8Array) => void;
}

/** Frames since power-on */
export interface VirtioNetCounters {
  readonly sent: number;
  readonly sentBytes: number;
  /** Of impossible size, or with an offload that was not negotiated */
  readonly sentDropped: number;
  readonly received: number;
  readonly receivedBytes: number;
  /** Link down, no driver, too many waiting, or a guest's buffer too small */
  readonly receivedDropped: number;
}

const NO_FRAMES: VirtioNetCounters = {
  sent: 0,
  sentBytes: 0,
  sentDropped: 0,
  received: 0,
  receivedBytes: 0,
  receivedDropped: 0,
};

/** Network device (virtio 1.2 §5.1): one queue pair, Ethernet frames, no offloads. */
export class VirtioNet extends VirtioDevice {
  readonly #mac: Uint8Array;
  readonly #sink: VirtioNetOptions['sink'];
  #linkUp = true;
  #waiting: Uint8Array[] = [];
  #counters = NO_FRAMES;

  constructor(options: VirtioNetOptions) {
    super(options, {
      name: 'virtio-net',
      virtioId: VIRTIO_ID_NET,
      features: featureMask(VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_MTU),
      queues: [
        { maxSize: 256, maxChainBytes: MAX_CHAIN_BYTES },
        { maxSize: 256, maxChainBytes: MAX_CHAIN_BYTES },
      ],
    });
    this.#mac = options.mac.slice();
    this.#sink = options.sink;
    this.config(); // refuses a MAC of another length now
  }

  get counters(): VirtioNetCounters {
    return this.#counters;
  }

  /** Plugs the cable in or out; the driver hears of it. */
  setLink(up: boolean): void {
    if (up === this.#linkUp) return;
    this.#linkUp = up;
    if (!up) this.#waiting = [];
    this.configChanged();
  }

  /** A frame for the guest; false where it was dropped. */
  receive(frame: Uint8Array): boolean {
    const possible = isFrameSize(frame.length) && this.#linkUp && this.driverReady;
    if (!possible || this.#waiting.length >= MAX_WAITING_FRAMES) {
      this.#count({ receivedDropped: 1 });
      return false;
    }
    this.#waiting.push(frame.slice());
    this.notify(RECEIVE_QUEUE);
    return true;
  }

  protected config(): Uint8Array {
    return encodeVirtioNetConfig({ mac: this.#mac, status: this.#linkUp ? VIRTIO_NET_S_LINK_UP : 0, mtu: MTU });
  }

  protected serve(queue: VirtQueue): void {
    if (queue.index === TRANSMIT_QUEUE) {
      this.drain(queue, (chain) => {
        this.#transmit(chain);
        this.finish(queue, chain, 0);
      });
      return;
    }
    this.drain(
      queue,
      (chain) => this.finish(queue, chain, this.#deliver(chain)),
      () => this.#waiting.length > 0,
    );
  }

  #transmit(chain: Chain): void {
    const bytes = chain.readableBytes - VIRTIO_NET_HDR_BYTES;
    if (!isFrameSize(bytes) || !this.#linkUp || !isPlain(chain.read(0, VIRTIO_NET_HDR_BYTES))) {
      this.#count({ sentDropped: 1 });
      return;
    }
    this.#count({ sent: 1, sentBytes: bytes });
    this.#sink?.(chain.read(VIRTIO_NET_HDR_BYTES, bytes));
  }

  /** Bytes written. A buffer that is too small costs its frame and goes back empty (§5.1.6.3.1). */
  #deliver(chain: Chain): number {
    const frame = this.#waiting.shift()!;
    const bytes = VIRTIO_NET_HDR_BYTES + frame.length;
    if (chain.writableBytes < bytes) {
      this.#count({ receivedDropped: 1 });
      return 0;
    }
    chain.write(0, PLAIN_HEADER);
    chain.write(VIRTIO_NET_HDR_BYTES, frame);
    this.#count({ received: 1, receivedBytes: frame.length });
    return bytes;
  }

  #count(more: Partial<VirtioNetCounters>): void {
    const next = { ...this.#counters };
    for (const [name, value] of Object.entries(more)) next[name as keyof VirtioNetCounters] += value;
    this.#counters = next;
  }

  protected override resetModel(): void {
    this.#waiting = [];
  }

  protected saveModel(): StateValue {
    return { mac: this.#mac.slice(), linkUp: this.#linkUp, waiting: this.#waiting.map((frame) => frame.slice()) };
  }

  /** The MAC comes with the machine: a guest that moves keeps it. */
  protected prepareModel(reader: StateReader): () => void {
    const mac = reader.bytes('mac', 6, 6).slice();
    const linkUp = reader.boolean('linkUp');
    const waiting = reader.list('waiting', MAX_WAITING_FRAMES, (frame, path) => {
      if (!(frame instanceof Uint8Array) || !isFrameSize(frame.length)) throw new StateError(path, 'not a frame');
      return frame.slice();
    });
    return () => {
      this.#mac.set(mac);
      this.#linkUp = linkUp;
      this.#waiting = waiting;
    };
  }
}

function isFrameSize(bytes: number): boolean {
  return bytes >= ETHERNET_HEADER_BYTES && bytes <= MAX_FRAME_BYTES;
}

/** §5.1.6.2.1: without the features of checksum and segmentation a driver may ask for neither. */
function isPlain(bytes: Uint8Array): boolean {
  const { flags, gsoType } = decodeVirtioNetHeader(bytes);
  return flags === 0 && gsoType === VIRTIO_NET_HDR_GSO_NONE;
}
