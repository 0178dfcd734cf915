import type { Observable } from 'rxjs';
import { Subject } from 'rxjs/internal/Subject';
import {
  encodeVirtioConsoleConfig,
  featureMask,
  VIRTIO_CONSOLE_EMERG_WR,
  VIRTIO_CONSOLE_F_EMERG_WRITE,
  VIRTIO_CONSOLE_F_SIZE,
  VIRTIO_ID_CONSOLE,
} from '../../../protocols/virtio/mod.ts';
import type { StateReader } from '../../state/read_state.ts';
import type { StateValue } from '../../state/state.ts';
import type { CharacterPort } from '../backends.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import type { VirtQueue } from './queue.ts';

const RECEIVE_QUEUE = 0;
const TRANSMIT_QUEUE = 1;
/** Input that waits for the guest's buffers, in `bytes` */
const INPUT_BYTES = 4096;
/** One write of the guest, in `bytes` */
const MAX_CHAIN_BYTES = 1024 * 1024;

/**
 * Console device (virtio 1.2 §5.3) with its one port. Input is bounded; output goes out as it comes, and while its taker
 * has no room the guest's buffers stay in their queue.
 */
export class VirtioConsole extends VirtioDevice implements CharacterPort {
  readonly output: Observable<Uint8Array>;
  readonly ready: Observable<void>;
  readonly #output = new Subject<Uint8Array>();
  readonly #ready = new Subject<void>();
  #input = new Uint8Array(0);
  /** Somebody was told that not all fits */
  #refused = false;
  /** Whoever takes the output has no room */
  #outputHeld = false;
  #size = { cols: 0, rows: 0 };

  constructor(options: VirtioDeviceOptions) {
    super(options, {
      name: 'virtio-console',
      virtioId: VIRTIO_ID_CONSOLE,
      features: featureMask(VIRTIO_CONSOLE_F_SIZE, VIRTIO_CONSOLE_F_EMERG_WRITE),
      queues: [
        { maxSize: 128, maxChainBytes: MAX_CHAIN_BYTES },
        { maxSize: 128, maxChainBytes: MAX_CHAIN_BYTES },
      ],
    });
    this.output = this.#output.asObservable();
    this.ready = this.#ready.asObservable();
  }

  write(bytes: Uint8Array): number {
    const taken = Math.min(bytes.length, INPUT_BYTES - this.#input.length);
    if (taken < bytes.length) this.#refused = true;
    if (taken > 0) {
      const joined = new Uint8Array(this.#input.length + taken);
      joined.set(this.#input);
      joined.set(bytes.subarray(0, taken), this.#input.length);
      this.#input = joined;
      this.notify(RECEIVE_QUEUE);
    }
    return taken;
  }

  holdOutput(held: boolean): void {
    this.#outputHeld = held;
    if (!held) this.notify(TRANSMIT_QUEUE);
  }

  /** Hands on what the driver has queued, also during a hold: the guest ends, and these are its last words. */
  flush(): void {
    const held = this.#outputHeld;
    this.#outputHeld = false;
    this.notify(TRANSMIT_QUEUE);
    this.#outputHeld = held;
  }

  /** Size of the terminal behind the port, for VIRTIO_CONSOLE_F_SIZE. */
  resize(cols: number, rows: number): void {
    this.#size = { cols: cols & 0xffff, rows: rows & 0xffff };
    this.configChanged();
  }

  protected config(): Uint8Array {
    return encodeVirtioConsoleConfig({ ...this.#size, maxPorts: 1 });
  }

  /** One character before, or without, any queue (§5.3.4). */
  override writeConfig(offset: number, _size: number, value: number): void {
    if (offset === VIRTIO_CONSOLE_EMERG_WR) this.#output.next(Uint8Array.of(value & 0xff));
  }

  protected serve(queue: VirtQueue): void {
    if (queue.index === TRANSMIT_QUEUE) {
      this.drain(
        queue,
        (chain) => {
          const bytes = chain.read(0, chain.readableBytes);
          this.finish(queue, chain, 0);
          if (bytes.length > 0) this.#output.next(bytes);
        },
        () => !this.#outputHeld,
      );
      return;
    }
    this.drain(
      queue,
      (chain) => {
        const piece = this.#input.subarray(0, chain.writableBytes);
        chain.write(0, piece);
        this.finish(queue, chain, piece.length);
        this.#input = this.#input.slice(piece.length);
      },
      () => this.#input.length > 0,
    );
    if (this.#refused && this.#input.length < INPUT_BYTES) {
      this.#refused = false;
      this.#ready.next();
    }
  }

  protected override resetModel(): void {
    this.#input = new Uint8Array(0);
    if (this.#refused) {
      this.#refused = false;
      this.#ready.next();
    }
  }

  protected saveModel(): StateValue {
    return { input: this.#input.slice(), ...this.#size };
  }

  protected prepareModel(reader: StateReader): () => void {
    const input = reader.bytes('input', 0, INPUT_BYTES).slice();
    const cols = reader.integer('cols', 0, 0xffff);
    const rows = reader.integer('rows', 0, 0xffff);
    return () => {
      this.#input = input;
      this.#size = { cols, rows };
    };
  }
}
