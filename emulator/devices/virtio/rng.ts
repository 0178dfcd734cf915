import { VIRTIO_ID_RNG } from '../../../protocols/virtio/mod.ts';
import type { StateValue } from '../../state/state.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import type { VirtQueue } from './queue.ts';

/** Given for one request, in `bytes`; a driver asks again. Also the limit of getRandomValues() */
const MAX_REQUEST_BYTES = 65536;
const NO_CONFIG = new Uint8Array(0);

export interface VirtioRngOptions extends VirtioDeviceOptions {
  /** Fills all of `bytes` (at most 65536) from the platform's generator */
  readonly fillRandom: (bytes: Uint8Array<ArrayBuffer>) => void;
}

/** Entropy device (virtio 1.2 §5.4). */
export class VirtioRng extends VirtioDevice {
  readonly #fillRandom: VirtioRngOptions['fillRandom'];

  constructor(options: VirtioRngOptions) {
    super(options, { name: 'virtio-rng', virtioId: VIRTIO_ID_RNG, features: 0n, queues: [{ maxSize: 8 }] });
    this.#fillRandom = options.fillRandom;
  }

  protected config(): Uint8Array {
    return NO_CONFIG;
  }

  protected serve(queue: VirtQueue): void {
    this.drain(queue, (chain) => {
      const bytes = new Uint8Array(Math.min(chain.writableBytes, MAX_REQUEST_BYTES));
      this.#fillRandom(bytes);
      chain.write(0, bytes);
      this.finish(queue, chain, bytes.length);
    });
  }

  protected saveModel(): StateValue {
    return {};
  }

  protected prepareModel(): () => void {
    return () => {};
  }
}
