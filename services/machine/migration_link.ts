import { createHash } from 'node:crypto';
import type { Duplex } from 'node:stream';
import type { MachineApi } from '../../emulator/machine/machine_api.ts';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  decodeBoolean,
  decodeNumber,
  decodeStateFrame,
  encodeBoolean,
  encodeDescription,
  encodeDone,
  encodeFault,
  encodeNumber,
  encodePassTotals,
  LINK_STATE_CHUNK_BYTES,
  LinkFrame,
  MAX_DEVICE_STATE_BYTES,
  MAX_LINK_PAYLOAD_BYTES,
  MAX_PASSES,
  PAGE_BYTES,
  StateCollector,
} from '../../protocols/migration/mod.ts';
import { Channel } from '../shared/channel.ts';
import { decodeMachineState, encodeMachineState } from '../shared/device_state.ts';
import { encodeMessagePack } from '../shared/messagepack.ts';
import { PageReceiver } from './page_receiver.ts';
import { PageSender } from './page_sender.ts';

/** What moves beside the guest. The disks belong to one end at any time: they change hands at Commit. */
export interface MigrationHooks {
  /** Source: the harts stand; everything that the guest wrote is on its disks afterwards */
  flushDisks(): Promise<void>;
  /** Source, just before Commit: no request of ours may reach a disk any more */
  releaseDisks(): Promise<void>;
  /** Destination at Commit, or the source that gets its guest back */
  takeDisks(): Promise<void>;
  /** Source: the guest runs elsewhere now */
  handedOver?(): void;
  /** Things that an operator must know; one line each */
  log?(text: string): void;
}

export interface MigrationLinkServer {
  /** Resolves when the link is closed and what it held is undone */
  readonly closed: Promise<void>;
  /**
   * Why nobody may start, resume or reset this machine now, or undefined. Ask before each: a guest that is on its
   * way, or runs elsewhere, must not run here because somebody says `cont`.
   */
  blocksRun(): string | undefined;
}

/** Requests of the migration role that wait; it sends one at a time. */
const MAX_WAITING_REQUESTS = 4;
const NOTHING = new Uint8Array(0);

interface SourceSide {
  readonly sender: PageSender;
  /** We have paused it */
  paused: boolean;
  /** It ran before we paused it */
  ran: boolean;
  /** The disks are the destination's, and perhaps the guest too */
  released: boolean;
}

interface DestinationSide {
  readonly receiver: PageReceiver;
  readonly state: StateCollector;
  apply: (() => void) | undefined;
}

/** A request that is out of place or cannot be done; the link stays. */
class LinkFault extends Error {
  readonly code: string;
  constructor(code: string, text: string) {
    super(text);
    this.code = code;
  }
}

/**
 * Serves the migration role of one machine, as source and as destination. That role talks with foreign hosts and may
 * have been taken over by one: every frame is checked again here, nothing but RAM and validated device state can be
 * stored, only before the guest starts, and losing the link undoes what is not final.
 */
export function serveMigration(link: Duplex, machine: MachineApi, hooks: MigrationHooks): MigrationLinkServer {
  return new LinkServer(link, machine, hooks);
}

class LinkServer implements MigrationLinkServer {
  readonly closed: Promise<void>;
  readonly #machine: MachineApi;
  readonly #hooks: MigrationHooks;
  readonly #channel: Channel;
  #work: Promise<void> = Promise.resolve();
  #waiting = 0;
  #source: SourceSide | undefined;
  #runsElsewhere = false;
  #destination: DestinationSide | undefined;

  constructor(link: Duplex, machine: MachineApi, hooks: MigrationHooks) {
    this.#machine = machine;
    this.#hooks = hooks;
    this.#channel = new Channel(link, { name: 'migration', maxPayloadBytes: MAX_LINK_PAYLOAD_BYTES });
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    this.#channel.onFrame((type, payload) => this.#receive(type, payload));
    this.#channel.onClose((error) => {
      if (error !== undefined) this.#log(`migration link closed: ${error.message}`);
      this.#source?.sender.stop();
      this.#work = this.#work.then(() => this.#linkLost()).finally(resolve);
    });
  }

  blocksRun(): string | undefined {
    if (this.#runsElsewhere) return 'the guest was migrated and runs elsewhere';
    if (this.#source?.released === true) return 'the guest was handed over and may run elsewhere';
    if (this.#source?.paused === true) return 'the guest is being migrated away';
    if (this.#destination !== undefined) return 'a guest is being migrated in';
    return undefined;
  }

  /** What throws here closes the link: the other side breaks the protocol. */
  #receive(type: number, payload: Uint8Array): void {
    switch (type) {
      case LinkFrame.record:
        this.#incoming('record').receiver.store(payload);
        return;
      case LinkFrame.state: {
        const { offset, chunk } = decodeStateFrame(payload);
        this.#incoming('state').state.add(offset, chunk);
        return;
      }
      case LinkFrame.stopPass:
        this.#source?.sender.stop();
        return;
    }
    if (this.#waiting >= MAX_WAITING_REQUESTS) {
      throw new WireError('ERR_WIRE_LIMIT', `Cannot queue request ${type}: ${MAX_WAITING_REQUESTS} wait`);
    }
    this.#waiting++;
    const request = new Uint8Array(payload);
    this.#work = this.#work.then(async () => {
      try {
        const answer = await this.#run(type, request);
        this.#channel.send(LinkFrame.done, encodeDone(type, answer));
      } catch (error) {
        this.#channel.send(LinkFrame.fault, encodeFault(type, ...describeError(error)));
      } finally {
        this.#waiting--;
      }
    });
  }

  /** Bulk frames are stored as they come, so no request may be under way that they could overtake. */
  #incoming(what: string): DestinationSide {
    const side = this.#destination;
    if (side === undefined || side.apply !== undefined || this.#waiting > 0) {
      throw new WireError('ERR_WIRE_STATE', `Cannot accept a ${what} frame: no migration comes in`);
    }
    return side;
  }

  async #run(type: number, payload: Uint8Array): Promise<Uint8Array> {
    switch (type) {
      case LinkFrame.describe:
        return this.#describe();
      case LinkFrame.track:
        return this.#track();
      case LinkFrame.sync:
        return encodeNumber(this.#needSource().sender.collect());
      case LinkFrame.pass:
        return this.#pass(decodeNumber(payload, 'pass', MAX_PASSES));
      case LinkFrame.pause:
        return this.#pause();
      case LinkFrame.save:
        return this.#save();
      case LinkFrame.digest:
        return this.#digest(decodeBoolean(payload, 'recompute'));
      case LinkFrame.release:
        return this.#release();
      case LinkFrame.handover:
        return this.#handover();
      case LinkFrame.untrack:
        await this.#untrack();
        return NOTHING;
      case LinkFrame.throttle: {
        const percent = payload.length === 1 ? payload[0]! : 255;
        if (percent > 99) throw new LinkFault('ERR_WIRE_VALUE', `Cannot throttle: ${percent} percent, expected 0..99`);
        this.#needSource();
        this.#machine.setThrottle(percent);
        return NOTHING;
      }
      case LinkFrame.incoming:
        return this.#begin();
      case LinkFrame.passMark:
        this.#needDestination();
        return NOTHING;
      case LinkFrame.prepare:
        return this.#prepare(decodeNumber(payload, 'state length', MAX_DEVICE_STATE_BYTES));
      case LinkFrame.commit:
        return this.#commit(decodeBoolean(payload, 'run'));
      case LinkFrame.abort:
        this.#abort();
        return NOTHING;
      default:
        throw new LinkFault('ERR_WIRE_VALUE', `Cannot run request ${type}: unknown`);
    }
  }

  #describe(): Uint8Array {
    const { config, devices } = this.#machine.describeState();
    return encodeDescription({
      ramPages: this.#machine.ramBytes / PAGE_BYTES,
      running: this.#machine.status === 'running',
      config: encodeMessagePack(config),
      devices,
    });
  }

  #track(): Uint8Array {
    if (this.#source !== undefined || this.#destination !== undefined) {
      throw new LinkFault('ERR_MIGRATION_BUSY', 'Cannot start a migration: one is under way');
    }
    const { status } = this.#machine;
    if (status !== 'running' && status !== 'paused' && status !== 'prelaunch') {
      throw new LinkFault('ERR_MIGRATION_GUEST', `Cannot migrate the guest: it is in state ${status}`);
    }
    const sender = new PageSender(this.#machine, this.#channel);
    this.#source = { sender, paused: false, ran: false, released: false };
    return NOTHING;
  }

  async #pass(pass: number): Promise<Uint8Array> {
    return encodePassTotals(await this.#needSource().sender.pass(pass));
  }

  async #pause(): Promise<Uint8Array> {
    const source = this.#needSource();
    if (!source.paused) {
      source.ran = this.#machine.status === 'running';
      source.paused = true;
      if (source.ran) await this.#machine.pause();
      await this.#hooks.flushDisks();
    }
    const { status } = this.#machine;
    if (status !== 'paused' && status !== 'prelaunch') {
      throw new LinkFault('ERR_MIGRATION_GUEST', `Cannot migrate the guest: it is in state ${status}`);
    }
    return encodeBoolean(source.ran);
  }

  async #save(): Promise<Uint8Array> {
    this.#needPaused();
    const bytes = encodeMachineState(this.#machine.saveState());
    for (let offset = 0; offset < bytes.length; offset += LINK_STATE_CHUNK_BYTES) {
      const chunk = bytes.subarray(offset, offset + LINK_STATE_CHUNK_BYTES);
      if (!this.#channel.send(LinkFrame.state, encodeNumber(offset), chunk)) await this.#channel.drained();
    }
    return encodeNumber(bytes.length);
  }

  async #digest(recompute: boolean): Promise<Uint8Array> {
    const table = (this.#destination?.receiver ?? this.#needPaused().sender).table;
    if (recompute) {
      const page = await table.firstDifference((offset, length) => this.#machine.ram(offset, length));
      if (page !== undefined) {
        throw new LinkFault('ERR_MIGRATION_DIGEST', `Cannot hand over RAM: page ${page} is not as it was moved`);
      }
    }
    return table.digest();
  }

  async #release(): Promise<Uint8Array> {
    const source = this.#needPaused();
    await this.#hooks.releaseDisks();
    source.released = true;
    return NOTHING;
  }

  #handover(): Uint8Array {
    if (!this.#needPaused().released) {
      throw new LinkFault('ERR_WIRE_STATE', 'Cannot hand over the guest: its disks are not released');
    }
    this.#source = undefined;
    this.#runsElsewhere = true;
    this.#machine.setThrottle(0);
    this.#hooks.handedOver?.();
    return NOTHING;
  }

  /** The guest stays here: whatever the migration did to it ends. */
  async #untrack(): Promise<void> {
    const source = this.#source;
    if (source === undefined) return;
    this.#machine.setThrottle(0);
    if (source.released) {
      await this.#hooks.takeDisks();
      source.released = false;
    }
    this.#source = undefined;
    if (source.ran && this.#machine.status === 'paused') this.#machine.resume();
  }

  #begin(): Uint8Array {
    if (this.#source !== undefined || this.#destination !== undefined) {
      throw new LinkFault('ERR_MIGRATION_BUSY', 'Cannot accept a migration: one is under way');
    }
    const { status } = this.#machine;
    if (status !== 'prelaunch' && status !== 'inmigrate') {
      throw new LinkFault('ERR_MIGRATION_GUEST', `Cannot load a guest into this machine: it is in state ${status}`);
    }
    const receiver = new PageReceiver(this.#machine);
    this.#destination = { receiver, state: new StateCollector(), apply: undefined };
    return NOTHING;
  }

  #prepare(lengthBytes: number): Uint8Array {
    const side = this.#needDestination();
    if (side.state.length !== lengthBytes) {
      throw new LinkFault(
        'ERR_WIRE_TRUNCATED',
        `Cannot load devices: ${side.state.length} of ${lengthBytes} bytes came`,
      );
    }
    const bytes = side.state.take();
    side.apply = this.#machine.prepareState(decodeMachineState(bytes));
    return new Uint8Array(createHash('sha256').update(bytes).digest());
  }

  async #commit(run: boolean): Promise<Uint8Array> {
    const side = this.#needDestination();
    if (side.apply === undefined) {
      throw new LinkFault('ERR_WIRE_STATE', 'Cannot run the guest: its devices are not prepared');
    }
    await this.#hooks.takeDisks();
    try {
      side.apply();
    } catch (error) {
      // A prepared state must apply; if it does not, the guest is the source's again, and so are its disks.
      await this.#hooks.releaseDisks();
      throw error;
    }
    this.#destination = undefined;
    if (run) this.#machine.start();
    return NOTHING;
  }

  #abort(): void {
    this.#destination?.receiver.scrub();
    this.#destination = undefined;
  }

  async #linkLost(): Promise<void> {
    try {
      this.#abort();
    } catch (error) {
      this.#log(`what came in was not cleared: ${describeError(error)[1]}`); // the machine has ended
    }
    if (this.#source?.released === true) {
      // The destination may run the guest. Two runners would destroy the disks; none is for the operator to end.
      this.#log('migration link lost after the disks were released: the guest stays paused here');
      return;
    }
    try {
      await this.#untrack();
    } catch (error) {
      this.#log(`the guest stays paused: ${describeError(error)[1]}`);
    }
  }

  #needSource(): SourceSide {
    if (this.#source === undefined) throw new LinkFault('ERR_WIRE_STATE', 'Cannot send pages: no migration goes out');
    return this.#source;
  }

  #needPaused(): SourceSide {
    const source = this.#needSource();
    if (!source.paused) throw new LinkFault('ERR_WIRE_STATE', 'Cannot save the guest: it is not paused');
    return source;
  }

  #needDestination(): DestinationSide {
    if (this.#destination === undefined) {
      throw new LinkFault('ERR_WIRE_STATE', 'Cannot load pages: no migration comes in');
    }
    return this.#destination;
  }

  #log(text: string): void {
    this.#hooks.log?.(text);
  }
}

function describeError(error: unknown): [code: string, text: string] {
  if (!(error instanceof Error)) return ['ERR_FAILED', String(error)];
  const code = 'code' in error && typeof error.code === 'string' ? error.code : 'ERR_FAILED';
  return [code, error.message];
}
