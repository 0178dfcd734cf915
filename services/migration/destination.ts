import type { Duplex } from 'node:stream';
import { crc32 } from 'node:zlib';
import type { Observable } from 'rxjs';
import { BehaviorSubject } from 'rxjs/internal/BehaviorSubject';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type ControlMessage,
  decodeRecord,
  HANDSHAKE_TIMEOUT_MS,
  IDLE_TIMEOUT_MS,
  MAX_PAGE_WORK_FACTOR,
  MAX_PASSES,
  type MachineDescription,
  PAGE_BYTES,
  printable,
  RecordKind,
  RecordOrder,
  SessionState,
  StateCollector,
} from '../../protocols/migration/mod.ts';
import { decodeMachineState } from '../shared/device_state.ts';
import type { MachineClient } from './machine_client.ts';
import { compareManifest } from './manifest.ts';
import { MigrationError } from './migration_error.ts';
import { type MigrationProgress, NO_PROGRESS } from './progress.ts';
import { errorCode, PROTOCOL_VERSION } from './source.ts';
import { Wire } from './wire.ts';

const PROGRESS_MS = 100;

export interface DestinationLimits {
  readonly handshakeTimeoutMs: number;
  /** For one whole frame */
  readonly idleTimeoutMs: number;
  readonly maxPasses: number;
  /** Pages that may be stored in all, as a multiple of RAM */
  readonly maxPageWorkFactor: number;
}

export const DEFAULT_DESTINATION_LIMITS: DestinationLimits = {
  handshakeTimeoutMs: HANDSHAKE_TIMEOUT_MS,
  idleTimeoutMs: IDLE_TIMEOUT_MS,
  maxPasses: MAX_PASSES,
  maxPageWorkFactor: MAX_PAGE_WORK_FACTOR,
};

export interface MigrationDestinationOptions {
  readonly machine: MachineClient;
  /** The accepted connection; TLS is around it already */
  readonly stream: Duplex;
  readonly limits?: Partial<DestinationLimits>;
}

/**
 * Takes one guest in. The source is foreign: what it sends is decoded, held against the session and its limits, and
 * only then stored or prepared; the devices change at Commit, all at once, after everything was validated. If it
 * does not come to that, the machine is as it was.
 */
export class MigrationDestination {
  readonly #machine: MachineClient;
  readonly #wire: Wire;
  readonly #limits: DestinationLimits;
  readonly #session = new SessionState('destination');
  readonly #state = new StateCollector();
  readonly #progress = new BehaviorSubject<MigrationProgress>({ ...NO_PROGRESS, side: 'destination', status: 'setup' });
  readonly #startedMs = performance.now();
  #description: MachineDescription | undefined;
  #order = new RecordOrder({ blockPages: [] });
  #pageWork = 0;
  #receivedBytes = 0;
  #normalPages = 0;
  #zeroPages = 0;
  #lastEmitMs = 0;
  #stateTotal = 0;
  #guestRan = false;
  #stoppedMs = 0;
  #begun = false;
  #cancelled = false;

  constructor(options: MigrationDestinationOptions) {
    this.#machine = options.machine;
    this.#wire = new Wire(options.stream);
    this.#limits = { ...DEFAULT_DESTINATION_LIMITS, ...options.limits };
  }

  get progress(): Observable<MigrationProgress> {
    return this.#progress.asObservable();
  }
  get current(): MigrationProgress {
    return this.#progress.value;
  }

  /** Ends it, unless the guest is ours already. */
  cancel(): void {
    this.#cancelled = true;
    this.#wire.destroy();
  }

  /** Runs the session to its end, good or bad; never rejects. Gives the last progress. */
  async run(): Promise<MigrationProgress> {
    try {
      while (this.#session.phase !== 'done') await this.#step();
      this.#update({ status: 'completed', remainingBytes: 0, downtimeMs: performance.now() - this.#stoppedMs });
    } catch (error) {
      await this.#rollback(error instanceof Error ? error : new Error(String(error)));
    }
    this.#wire.close();
    this.#progress.complete();
    return this.#progress.value;
  }

  async #step(): Promise<void> {
    const greeting = this.#session.phase === 'start' || this.#session.phase === 'greeted';
    const frame = await this.#wire.next(greeting ? this.#limits.handshakeTimeoutMs : this.#limits.idleTimeoutMs);
    if (frame.kind === 'record') {
      this.#session.received('record');
      await this.#store(frame.bytes);
    } else {
      this.#session.received(frame.message.kind);
      await this.#handle(frame.message);
    }
  }

  async #store(record: Uint8Array): Promise<void> {
    const { header } = decodeRecord(record, crc32);
    this.#order.accept(header);
    this.#pageWork += header.pageCount;
    const limit = this.#description!.ramPages * this.#limits.maxPageWorkFactor;
    if (this.#pageWork > limit) {
      throw new WireError('ERR_WIRE_LIMIT', `Cannot store more pages: ${this.#pageWork} in all, limit is ${limit}`);
    }
    this.#receivedBytes += record.length;
    await this.#machine.store(record);
    if (header.kind === RecordKind.zero) this.#zeroPages += header.pageCount;
    else this.#normalPages += header.pageCount;
    if (performance.now() - this.#lastEmitMs > PROGRESS_MS) this.#update({});
  }

  async #handle(message: ControlMessage): Promise<void> {
    switch (message.kind) {
      case 'hello': {
        const { versionMin, versionMax, sessionId } = message;
        if (versionMin > PROTOCOL_VERSION || versionMax < PROTOCOL_VERSION) {
          throw new WireError(
            'ERR_WIRE_VALUE',
            `Cannot speak versions ${versionMin} to ${versionMax}: this destination has ${PROTOCOL_VERSION}`,
          );
        }
        this.#send({ kind: 'helloAck', version: PROTOCOL_VERSION, sessionId, features: [] });
        return;
      }
      case 'manifest': {
        const description = await this.#machine.describe();
        const reasons = compareManifest(message, description);
        if (reasons.length > 0) {
          this.#send({ kind: 'refuse', reasons });
          throw new MigrationError('ERR_MIGRATION_REFUSED', `Cannot take the guest in: ${reasons.join('; ')}`);
        }
        await this.#machine.incoming();
        this.#begun = true;
        this.#description = description;
        this.#order = new RecordOrder({ blockPages: message.ram.map((block) => block.pages) });
        this.#send({ kind: 'manifestAck' });
        return;
      }
      case 'begin':
        this.#update({ status: 'active', totalBytes: this.#description!.ramPages * PAGE_BYTES });
        return;
      case 'passBegin':
        if (message.pass > this.#limits.maxPasses) {
          throw new WireError(
            'ERR_WIRE_LIMIT',
            `Cannot begin pass ${message.pass}: limit is ${this.#limits.maxPasses}`,
          );
        }
        this.#order.beginPass(message.pass);
        this.#update({ round: message.pass });
        return;
      case 'passEnd':
        await this.#passEnd(message.pass, message.records, message.pages);
        return;
      case 'stopSource':
        this.#guestRan = message.running;
        this.#stoppedMs = performance.now();
        this.#update({ status: 'device' });
        return;
      case 'deviceState':
        if (this.#state.length > 0 && message.totalBytes !== this.#stateTotal) {
          throw new WireError('ERR_WIRE_VALUE', 'Cannot accept device state: its total changes');
        }
        this.#stateTotal = message.totalBytes;
        if (message.chunk.length > message.totalBytes - message.offset) {
          throw new WireError(
            'ERR_WIRE_LIMIT',
            `Cannot accept device state: beyond its total of ${message.totalBytes}`,
          );
        }
        this.#state.add(message.offset, message.chunk);
        return;
      case 'digest':
        await this.#verify(message.ram, message.devices, message.recomputed);
        this.#send({ kind: 'ready' });
        return;
      case 'commit':
        await this.#machine.commit(this.#guestRan);
        this.#begun = false;
        try {
          this.#send({ kind: 'running' });
        } catch {
          // The source is gone, the guest is here and runs: that is what counts
        }
        return;
      case 'abort':
        throw new MigrationError('ERR_MIGRATION_ABORTED', `The source ended the migration: ${message.reason}`);
    }
  }

  async #passEnd(pass: number, records: number, pages: number): Promise<void> {
    if (records !== this.#order.records || pages !== this.#order.pages) {
      throw new WireError(
        'ERR_WIRE_VALUE',
        `Cannot end pass ${pass}: ${this.#order.records} records and ${this.#order.pages} pages came, source says ${records} and ${pages}`,
      );
    }
    await this.#machine.passMark();
    this.#send({ kind: 'passAck', pass });
  }

  /** All of it is here: compare, decode, validate. Nothing is applied yet. */
  async #verify(ram: Uint8Array, devices: Uint8Array, recomputed: boolean): Promise<void> {
    if (this.#state.length !== this.#stateTotal) {
      throw new WireError(
        'ERR_WIRE_TRUNCATED',
        `Cannot load devices: ${this.#state.length} of ${this.#stateTotal} bytes came`,
      );
    }
    const found = await this.#machine.digest(recomputed);
    if (Buffer.compare(found, ram) !== 0) {
      throw new MigrationError('ERR_MIGRATION_DIGEST', 'Cannot take the guest in: its RAM differs from the source’s');
    }
    const state = this.#state.take();
    // The shape is checked here, away from the guest; the machine checks again and then the meaning.
    decodeMachineState(state);
    const prepared = await this.#machine.prepare(state);
    if (Buffer.compare(prepared, devices) !== 0) {
      throw new MigrationError(
        'ERR_MIGRATION_DIGEST',
        'Cannot take the guest in: its devices differ from the source’s',
      );
    }
  }

  async #rollback(error: Error): Promise<void> {
    const { phase } = this.#session;
    if (phase !== 'aborted' && phase !== 'done' && this.#wire.writable) {
      try {
        this.#send({ kind: 'abort', reason: printable(error.message) });
      } catch {
        // The connection ended meanwhile; that tells the source the same
      }
    }
    this.#wire.close();
    let failure = error;
    if (this.#begun) {
      try {
        await this.#machine.abort();
      } catch (cause) {
        failure = new MigrationError('ERR_MIGRATION_MACHINE', `${error.message}; the machine cannot undo it`, {
          cause,
        });
      }
    }
    this.#update(
      this.#cancelled
        ? { status: 'cancelled' }
        : { status: 'failed', error: { code: errorCode(failure), message: failure.message } },
    );
  }

  #send(message: ControlMessage): void {
    this.#session.sent(message.kind);
    this.#wire.send(message);
  }

  #update(change: Partial<MigrationProgress>): void {
    const nowMs = performance.now();
    this.#lastEmitMs = nowMs;
    this.#progress.next({
      ...this.current,
      ...change,
      transferredBytes: this.#receivedBytes,
      normalPages: this.#normalPages,
      zeroPages: this.#zeroPages,
      totalMs: nowMs - this.#startedMs,
    });
  }
}
