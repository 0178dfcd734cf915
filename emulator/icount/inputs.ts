import type { Observable } from 'rxjs';
import { Subject } from 'rxjs/internal/Subject';
import { MAX_TEXT_BYTES } from '../../protocols/replay/mod.ts';
import type { BlockBackend, CharacterPort, KeyboardSink, TabletSink } from '../devices/backends.ts';
import { BlockError } from '../devices/backends.ts';
import { ReplayError } from './replay_error.ts';
import type { ReplayLog } from './replay_log.ts';

/** Keys and pointer moves that wait for the guest's next turn; more are forgotten */
const MAX_WAITING_EVENTS = 1024;

type InputEvent =
  | { readonly kind: 'key'; readonly code: number; readonly down: boolean }
  | { readonly kind: 'pointer'; readonly x: number; readonly y: number; readonly buttons: number }
  | { readonly kind: 'wheel'; readonly vertical: number; readonly horizontal: number };

interface DiskRequest {
  readonly disk: number;
  /** What a read fills */
  readonly into: Uint8Array | undefined;
  /** Settles when the backend is done; absent in a replay, which has no backend */
  readonly work: Promise<void> | undefined;
  readonly resolve: () => void;
  readonly reject: (error: BlockError) => void;
}

/**
 * Everything that comes into a machine from outside passes here and waits for one moment: between two runs of its
 * harts. There it is written down, or replaced by what was written down.
 */
export class Inputs {
  readonly #log: ReplayLog;
  readonly #ports = new Map<'serial' | 'console', GatedPort>();
  readonly #events: InputEvent[] = [];
  readonly #soon: (task: () => void) => void;
  #keyboard: KeyboardSink | undefined;
  #tablet: TabletSink | undefined;
  #requests: DiskRequest[] = [];
  #deferred: (() => void)[] = [];
  #wake: (() => void) | undefined;
  #abandoned = false;
  /** Ports whose output nobody takes now */
  readonly #heldPorts = new Set<'serial' | 'console'>();

  constructor(log: ReplayLog, soon: (task: () => void) => void) {
    this.#log = log;
    this.#soon = soon;
  }

  port(kind: 'serial' | 'console', port: CharacterPort): CharacterPort {
    const gated = new GatedPort(port, this.#log.mode === 'replay', {
      arrived: () => this.#arrived(),
      held: (held) => this.#holdOutput(kind, held),
    });
    this.#ports.set(kind, gated);
    return gated;
  }

  keyboard(sink: KeyboardSink): KeyboardSink {
    this.#keyboard = sink;
    return { leds: sink.leds, key: (code, down) => this.#event({ kind: 'key', code: code & 0xffff, down }) };
  }

  tablet(sink: TabletSink): TabletSink {
    this.#tablet = sink;
    return {
      pointer: (x, y, buttons) =>
        this.#event({ kind: 'pointer', x: x & 0xffff, y: y & 0xffff, buttons: buttons & 0xff }),
      wheel: (vertical, horizontal) =>
        this.#event({ kind: 'wheel', vertical: vertical | 0, horizontal: horizontal | 0 }),
    };
  }

  /** A disk whose requests end between two runs, in the order in which they began. */
  disk(index: number, backend: BlockBackend): BlockBackend {
    const replay = this.#log.mode === 'replay';
    const enter = (into: Uint8Array | undefined, work: () => Promise<void>): Promise<void> =>
      new Promise((resolve, reject) => {
        if (this.#abandoned) {
          reject(new BlockError('EIO', `Cannot carry out a request of disk ${index}: the run is over`));
          return;
        }
        this.#requests.push({ disk: index, into, work: replay ? undefined : work(), resolve, reject });
      });
    const { sizeBytes, readOnly, blockBytes } = backend;
    return {
      sizeBytes,
      readOnly,
      blockBytes,
      read: (offset, into) => enter(into, () => backend.read(offset, into)),
      write: (offset, data, options) => enter(undefined, () => backend.write(offset, data, options)),
      flush: () => enter(undefined, () => backend.flush()),
      ...(backend.discard === undefined
        ? {}
        : { discard: (offset, bytes) => enter(undefined, () => backend.discard!(offset, bytes)) }),
      ...(backend.writeZeroes === undefined
        ? {}
        : {
            writeZeroes: (offset, bytes, options) =>
              enter(undefined, () => backend.writeZeroes!(offset, bytes, options)),
          }),
    };
  }

  /** For devices that let others go first: their task runs before the next run of a hart. */
  readonly defer = (task: () => void): void => {
    if (this.#abandoned) this.#soon(task);
    else this.#deferred.push(task);
  };

  /** True while {@link settle} has something to do */
  get busy(): boolean {
    return this.#requests.length > 0 || this.#deferred.length > 0;
  }

  /** Lets devices finish what the last run began. @throws ReplayError */
  async settle(round: number, ns: number): Promise<void> {
    while (this.busy) {
      const tasks = this.#deferred;
      this.#deferred = [];
      for (const task of tasks) task();
      const request = this.#requests[0];
      if (request !== undefined) {
        await this.#end(request, round, ns);
        this.#requests.shift();
        // What follows from it, all of it, before the next one ends
        await new Promise<void>((resolve) => this.#soon(resolve));
      }
    }
  }

  /**
   * The run has failed, and nobody will come to {@link settle} any more: what devices began fails, so that they come to
   * rest and the machine can be closed.
   */
  abandon(): void {
    this.#abandoned = true;
    for (const task of this.#deferred.splice(0)) this.#soon(task);
    for (const { disk, reject } of this.#requests.splice(0)) {
      reject(new BlockError('EIO', `Cannot carry out a request of disk ${disk}: the run is over`));
    }
  }

  async #end({ disk, into, work, resolve, reject }: DiskRequest, round: number, ns: number): Promise<void> {
    let failed = false;
    if (work === undefined) {
      const record = this.#log.take('disk', round);
      const wanted = into?.length ?? 0;
      const found = record.bytes.length;
      if (record.disk !== disk || (into !== undefined && !record.failed && found !== wanted)) {
        throw new ReplayError(
          `Cannot replay: the guest asks disk ${disk} for ${wanted} bytes, the recording has ${found} of disk ${record.disk}`,
        );
      }
      failed = record.failed;
      if (!failed) into?.set(record.bytes);
    } else {
      try {
        await work;
      } catch {
        failed = true; // which error it was the guest is not told either
      }
      const bytes = into === undefined || failed ? new Uint8Array(0) : into;
      this.#log.record({ kind: 'disk', round, ns, disk, failed, bytes });
    }
    if (failed) reject(new BlockError('EIO', `Cannot carry out a request of disk ${disk}`));
    else resolve();
  }

  /** The moment for what has arrived. @throws ReplayError */
  deliver(round: number, ns: number): void {
    if (this.#log.mode === 'replay') {
      this.#replay(round);
      return;
    }
    for (const [kind, port] of this.#ports) {
      const bytes = port.offer(MAX_TEXT_BYTES);
      if (bytes !== undefined) this.#log.record({ kind, round, ns, bytes });
    }
    for (const event of this.#events.splice(0)) {
      this.#act(event);
      this.#log.record({ ...event, round, ns });
    }
  }

  #replay(round: number): void {
    for (;;) {
      const record = this.#log.peek();
      if (record === undefined || record.round !== round) return;
      switch (record.kind) {
        case 'serial':
        case 'console': {
          this.#log.take(record.kind, round);
          if (this.#ports.get(record.kind)?.force(record.bytes) !== true) {
            throw new ReplayError(`Cannot replay: the guest does not take its input in round ${round}`);
          }
          break;
        }
        case 'key':
        case 'pointer':
        case 'wheel':
          this.#log.take(record.kind, round);
          this.#act(record);
          break;
        default:
          return;
      }
    }
  }

  #act(event: InputEvent): void {
    if (event.kind === 'key') this.#keyboard?.key(event.code, event.down);
    else if (event.kind === 'pointer') this.#tablet?.pointer(event.x, event.y, event.buttons);
    else this.#tablet?.wheel(event.vertical, event.horizontal);
  }

  /** Something waits for {@link deliver} */
  get waiting(): boolean {
    return this.#events.length > 0 || [...this.#ports.values()].some((port) => port.offers);
  }

  /** Resolves at the next arrival; `wake()` ends it, too. */
  arrival(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  /** Somebody who takes output has no room: no hart runs meanwhile, which the guest cannot see. */
  get outputHeld(): boolean {
    return this.#heldPorts.size > 0;
  }

  #holdOutput(kind: 'serial' | 'console', held: boolean): void {
    if (held) this.#heldPorts.add(kind);
    else if (this.#heldPorts.delete(kind)) this.#arrived();
  }

  wake(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  #event(event: InputEvent): void {
    if (this.#log.mode === 'replay' || this.#events.length >= MAX_WAITING_EVENTS) return;
    this.#events.push(event);
    this.#arrived();
  }

  #arrived(): void {
    this.wake();
  }
}

interface PortListener {
  readonly arrived: () => void;
  readonly held: (held: boolean) => void;
}

/** A port whose input waits. */
class GatedPort implements CharacterPort {
  readonly #port: CharacterPort;
  readonly #deaf: boolean;
  readonly #tell: PortListener;
  readonly #ready = new Subject<void>();
  #waiting: Uint8Array = new Uint8Array(0);
  /** The guest had no room; looked at again when it has */
  #full = false;

  constructor(port: CharacterPort, deaf: boolean, tell: PortListener) {
    this.#port = port;
    this.#deaf = deaf;
    this.#tell = tell;
    port.ready.subscribe(() => {
      this.#full = false;
      this.#tell.arrived();
    });
  }

  get output(): Observable<Uint8Array> {
    return this.#port.output;
  }
  get ready(): Observable<void> {
    return this.#ready;
  }

  write(bytes: Uint8Array): number {
    // In a replay the terminal is only looked at
    if (this.#deaf) return bytes.length;
    const taken = Math.min(bytes.length, MAX_TEXT_BYTES - this.#waiting.length);
    const joined = new Uint8Array(this.#waiting.length + taken);
    joined.set(this.#waiting);
    joined.set(bytes.subarray(0, taken), this.#waiting.length);
    this.#waiting = joined;
    this.#tell.arrived();
    return taken;
  }

  /** The device never refuses: that would depend on the host. All harts wait, see {@link Inputs.outputHeld}. */
  holdOutput(held: boolean): void {
    this.#tell.held(held);
  }

  get offers(): boolean {
    return this.#waiting.length > 0 && !this.#full;
  }

  /** Gives the guest what it takes, at most `limit` bytes: those, or undefined where it was nothing. */
  offer(limit: number): Uint8Array | undefined {
    if (!this.offers) return undefined;
    const taken = this.#port.write(this.#waiting.subarray(0, limit));
    const bytes = this.#waiting.slice(0, taken);
    this.#full = taken < this.#waiting.length;
    this.#waiting = this.#waiting.slice(taken);
    if (taken > 0) this.#ready.next();
    return taken === 0 ? undefined : bytes;
  }

  /** All of it, as it was once; false where the guest has no room for it. */
  force(bytes: Uint8Array): boolean {
    return this.#port.write(bytes) === bytes.length;
  }
}
