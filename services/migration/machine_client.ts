import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  DIGEST_BYTES,
  decodeBoolean,
  decodeDescription,
  decodeDone,
  decodeFault,
  decodeNumber,
  decodePassTotals,
  decodeStateFrame,
  encodeBoolean,
  encodeNumber,
  LINK_STATE_CHUNK_BYTES,
  LinkFrame,
  MAX_DEVICE_STATE_BYTES,
  MAX_LINK_PAYLOAD_BYTES,
  type MachineDescription,
  type PassTotals,
  StateCollector,
} from '../../protocols/migration/mod.ts';
import { Channel } from '../shared/channel.ts';
import { MigrationError } from './migration_error.ts';

/** A refusal of the machine; `code` is its own */
export class MachineFault extends Error {
  override readonly name = 'MachineFault';
  readonly code: string;
  constructor(code: string, text: string) {
    super(text);
    this.code = code;
  }
}

interface Pending {
  readonly type: number;
  resolve(answer: Uint8Array): void;
  reject(error: Error): void;
}

const NOTHING = new Uint8Array(0);
const QUEUE_BYTES = 1 << 20;

/**
 * The machine, as the migration role sees it through their link. The machine runs the guest and may have been taken
 * over by it: sizes and shapes are checked here too. Requests go one after the other.
 */
export class MachineClient {
  readonly #channel: Channel;
  #queue: Promise<unknown> = Promise.resolve();
  #pending: Pending | undefined;
  #onRecord: ((record: Uint8Array) => void) | undefined;
  #state: StateCollector | undefined;

  constructor(link: Duplex) {
    this.#channel = new Channel(link, { name: 'machine', maxPayloadBytes: MAX_LINK_PAYLOAD_BYTES });
    this.#channel.onFrame((type, payload) => this.#receive(type, payload));
    this.#channel.onClose((cause) => this.#pending?.reject(gone(cause)));
  }

  onClose(handler: (error: Error | undefined) => void): void {
    this.#channel.onClose(handler);
  }

  close(): void {
    this.#channel.close();
  }

  async describe(): Promise<MachineDescription> {
    return decodeDescription(await this.#request(LinkFrame.describe));
  }
  async track(): Promise<void> {
    await this.#request(LinkFrame.track);
  }
  /** Pages that wait after collecting the dirty marks */
  async sync(): Promise<number> {
    return decodeNumber(await this.#request(LinkFrame.sync), 'waiting pages');
  }

  /** Sends the waiting pages through `onRecord`; use {@link pauseReading} against a slow peer. */
  async pass(pass: number, onRecord: (record: Uint8Array) => void): Promise<PassTotals> {
    const answer = await this.#request(LinkFrame.pass, encodeNumber(pass), () => {
      this.#onRecord = onRecord;
    });
    return decodePassTotals(answer);
  }

  /** Ends a pass early; its answer still comes. */
  stopPass(): void {
    this.#onRecord = dropRecord;
    this.#channel.send(LinkFrame.stopPass);
    this.resumeReading();
  }
  pauseReading(): void {
    this.#channel.stream.pause();
  }
  resumeReading(): void {
    this.#channel.stream.resume();
  }

  /** True when the guest ran before */
  async pause(): Promise<boolean> {
    return decodeBoolean(await this.#request(LinkFrame.pause), 'ran before');
  }
  async save(): Promise<Uint8Array> {
    const state = new StateCollector();
    const length = decodeNumber(
      await this.#request(LinkFrame.save, NOTHING, () => {
        this.#state = state;
      }),
      'state length',
      MAX_DEVICE_STATE_BYTES,
    );
    this.#state = undefined;
    if (length !== state.length) throw new WireError('ERR_WIRE_TRUNCATED', 'Cannot accept the device state: cut short');
    return state.take();
  }
  async digest(recompute: boolean): Promise<Uint8Array> {
    const digest = await this.#request(LinkFrame.digest, encodeBoolean(recompute));
    if (digest.length !== DIGEST_BYTES) throw new WireError('ERR_WIRE_VALUE', 'Cannot accept a digest: wrong size');
    return digest;
  }
  async release(): Promise<void> {
    await this.#request(LinkFrame.release);
  }
  async handover(): Promise<void> {
    await this.#request(LinkFrame.handover);
  }
  async untrack(): Promise<void> {
    await this.#request(LinkFrame.untrack);
  }
  async throttle(percent: number): Promise<void> {
    await this.#request(LinkFrame.throttle, Uint8Array.of(percent));
  }

  async incoming(): Promise<void> {
    await this.#request(LinkFrame.incoming);
  }
  /** Forwards one page record, waiting for the machine where it is slow. */
  async store(record: Uint8Array): Promise<void> {
    this.#channel.send(LinkFrame.record, record);
    if (this.#channel.stream.writableLength > QUEUE_BYTES) await this.#channel.drained();
    if (this.#channel.closed) throw gone(undefined);
  }
  /** Resolves when all records before it are in RAM */
  async passMark(): Promise<void> {
    await this.#request(LinkFrame.passMark);
  }
  /** Validates the whole device state; nothing is applied. Gives the SHA-256 of its bytes. */
  async prepare(state: Uint8Array): Promise<Uint8Array> {
    for (let offset = 0; offset < state.length; offset += LINK_STATE_CHUNK_BYTES) {
      const chunk = state.subarray(offset, offset + LINK_STATE_CHUNK_BYTES);
      this.#channel.send(LinkFrame.state, encodeNumber(offset), chunk);
      await this.#channel.drained();
    }
    return this.#request(LinkFrame.prepare, encodeNumber(state.length));
  }
  async commit(run: boolean): Promise<void> {
    await this.#request(LinkFrame.commit, encodeBoolean(run));
  }
  async abort(): Promise<void> {
    await this.#request(LinkFrame.abort);
  }

  #request(type: number, payload: Uint8Array = NOTHING, begin?: () => void): Promise<Uint8Array> {
    const answer = this.#queue.then(async () => {
      if (this.#channel.closed) throw gone(undefined);
      const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
      this.#pending = { type, resolve, reject };
      begin?.();
      this.#channel.send(type, payload);
      try {
        return await promise;
      } finally {
        this.#pending = undefined;
        this.#onRecord = undefined;
      }
    });
    this.#queue = answer.catch(() => {}); // the caller gets it; the queue only needs the order
    return answer;
  }

  #receive(type: number, payload: Uint8Array): void {
    if (type === LinkFrame.record) {
      if (this.#onRecord === undefined) throw new WireError('ERR_WIRE_STATE', 'Cannot accept a record: no pass runs');
      this.#onRecord(payload);
      return;
    }
    if (type === LinkFrame.state) {
      if (this.#state === undefined) throw new WireError('ERR_WIRE_STATE', 'Cannot accept device state: not asked for');
      const { offset, chunk } = decodeStateFrame(payload);
      this.#state.add(offset, chunk);
      return;
    }
    if (type !== LinkFrame.done && type !== LinkFrame.fault) {
      throw new WireError('ERR_WIRE_VALUE', `Cannot accept frame ${type} of the machine: unknown`);
    }
    const answer = type === LinkFrame.done ? decodeDone(payload) : decodeFault(payload);
    const pending = this.#pending;
    if (pending === undefined || pending.type !== answer.request) {
      throw new WireError('ERR_WIRE_STATE', `Cannot accept an answer to request ${answer.request}: not asked`);
    }
    if ('answer' in answer) pending.resolve(new Uint8Array(answer.answer));
    else pending.reject(new MachineFault(answer.code, answer.text));
  }
}

function dropRecord(): void {}

function gone(cause: Error | undefined): MigrationError {
  return new MigrationError('ERR_MIGRATION_MACHINE', 'Cannot ask the machine: its link is closed', { cause });
}
