import { createHash, randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { BehaviorSubject, type Observable } from 'rxjs';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  type ControlKind,
  type ControlMessage,
  DEVICE_STATE_CHUNK_BYTES,
  decodeRecordHeader,
  HANDSHAKE_TIMEOUT_MS,
  IDLE_TIMEOUT_MS,
  MAX_WAITING_MESSAGES,
  PAGE_BYTES,
  type PassTotals,
  printable,
  SESSION_ID_BYTES,
  SessionState,
} from '../../protocols/migration/mod.ts';
import { Convergence, type Decision } from './convergence.ts';
import { type MachineClient, MachineFault } from './machine_client.ts';
import { makeManifest } from './manifest.ts';
import { MigrationError } from './migration_error.ts';
import type { MigrationParameters } from './parameters.ts';
import { type MigrationProgress, NO_PROGRESS } from './progress.ts';
import { RateLimiter } from './rate_limiter.ts';
import { Wire } from './wire.ts';

export const PROTOCOL_VERSION = 1;
/** Progress is told at pass ends and at most this often between, in `ms` */
const PROGRESS_MS = 100;
/** Before the devices were saved once, in `bytes` */
const STATE_BYTES_GUESS = 64 * 1024;
const FOREVER_MS = 2 ** 31 - 1;

export interface MigrationSourceOptions {
  readonly machine: MachineClient;
  readonly parameters: MigrationParameters;
  /** Opens the connection; TLS is put around it here */
  readonly connect: (signal: AbortSignal) => Promise<Duplex>;
  /** Default {@link IDLE_TIMEOUT_MS} */
  readonly idleTimeoutMs?: number;
}

type Wanted<Kind extends ControlKind> = Extract<ControlMessage, { kind: Kind }>;

/**
 * Sends one guest away. Until Commit is sent the guest is ours and any failure, of the peer, the connection, the
 * machine or by {@link cancel}, lets it run on here; afterwards only the destination's Abort gives it back.
 */
export class MigrationSource {
  readonly #options: MigrationSourceOptions;
  readonly #machine: MachineClient;
  readonly #abort = new AbortController();
  readonly #session = new SessionState('source');
  readonly #limiter: RateLimiter;
  readonly #progress: BehaviorSubject<MigrationProgress>;
  readonly #startedMs = performance.now();
  readonly #inbox: ControlMessage[] = [];
  #inboxWake: (() => void) | undefined;
  #wire: Wire | undefined;
  #inPass = false;
  /** Rejects when the machine refuses: then there is nothing of ours to undo in it */
  #tracking: Promise<void> | undefined;
  #committed = false;
  #finished = false;
  #held = false;
  #lastEmitMs = 0;
  #stateBytes = STATE_BYTES_GUESS;

  constructor(options: MigrationSourceOptions) {
    this.#options = options;
    this.#machine = options.machine;
    this.#limiter = new RateLimiter(options.parameters['max-bandwidth'], performance.now());
    this.#progress = new BehaviorSubject<MigrationProgress>({ ...NO_PROGRESS, status: 'setup' });
  }

  /** Now, at each pass end, and some times a second between; completes with the migration. */
  get progress(): Observable<MigrationProgress> {
    return this.#progress.asObservable();
  }
  get current(): MigrationProgress {
    return this.#progress.value;
  }

  /** While passes run */
  setBandwidth(bytesPerSecond: number): void {
    this.#limiter.set(bytesPerSecond);
  }

  /**
   * Ends the migration; the guest runs on here. {@link run} resolves when that is so.
   * @throws MigrationError when the guest was given away already
   */
  cancel(): void {
    if (this.#finished) return;
    if (this.#committed) {
      throw new MigrationError('ERR_MIGRATION_STATE', 'Cannot cancel the migration: the guest was handed over');
    }
    this.#update({ status: 'cancelling' });
    this.#fail(new MigrationError('ERR_MIGRATION_CANCELLED', 'Migration cancelled'));
  }

  /** Runs the migration to its end, good or bad; never rejects. Gives the last progress. */
  async run(): Promise<MigrationProgress> {
    try {
      await this.#setup();
      const pass = await this.#passes();
      await this.#switchover(pass);
    } catch (error) {
      await this.#rollback(toError(error));
    }
    this.#finished = true;
    this.#wire?.close();
    this.#progress.complete();
    return this.#progress.value;
  }

  async #setup(): Promise<void> {
    const description = await this.#guard(this.#machine.describe());
    this.#update({ totalBytes: description.ramPages * PAGE_BYTES });
    const stream = await this.#options.connect(this.#abort.signal);
    const wire = new Wire(stream);
    this.#wire = wire;
    void this.#read(wire);
    const sessionId = new Uint8Array(randomBytes(SESSION_ID_BYTES));
    const version = PROTOCOL_VERSION;
    this.#send({ kind: 'hello', versionMin: version, versionMax: version, sessionId, features: [] });
    const ack = await this.#expect('helloAck', HANDSHAKE_TIMEOUT_MS);
    if (ack.version !== PROTOCOL_VERSION) {
      throw new WireError('ERR_WIRE_VALUE', `Cannot speak version ${ack.version}: offered ${PROTOCOL_VERSION}`);
    }
    if (Buffer.compare(ack.sessionId, sessionId) !== 0) {
      throw new WireError('ERR_WIRE_VALUE', 'Cannot accept helloAck of the destination: it is of another session');
    }
    this.#send({ kind: 'manifest', ...makeManifest(description) });
    await this.#expect('manifestAck', HANDSHAKE_TIMEOUT_MS);
    this.#tracking = this.#machine.track();
    await this.#guard(this.#tracking);
    this.#send({ kind: 'begin' });
    this.#update({ status: 'active', setupMs: performance.now() - this.#startedMs });
  }

  /** Passes until what is left fits into the downtime; gives the number of the last. */
  async #passes(): Promise<number> {
    const convergence = new Convergence(this.#options.parameters);
    let throttle = 0;
    for (let pass = 1; ; pass++) {
      const begun = performance.now();
      const sentBefore = this.#wire!.sentBytes;
      await this.#pass(pass, true);
      await this.#expectAck(pass, this.#idleMs);
      const durationMs = performance.now() - begun;
      const bytes = this.#wire!.sentBytes - sentBefore;
      const asked = performance.now();
      const remainingPages = await this.#guard(this.#machine.sync());
      const hopMs = performance.now() - asked;
      const decision: Decision = convergence.decide({
        pass,
        bytes,
        durationMs,
        remainingPages,
        elapsedMs: performance.now() - this.#startedMs,
        hopMs,
        stateBytes: this.#stateBytes,
      });
      this.#update({
        remainingBytes: remainingPages * PAGE_BYTES,
        dirtyPagesRate: (remainingPages / durationMs) * 1000,
        megabitsPerSecond: (bytes * 8) / durationMs / 1000,
        expectedDowntimeMs: Math.min(decision.expectedDowntimeMs, FOREVER_MS),
        throttle: decision.throttle,
      });
      if (decision.action === 'switchover') return pass;
      if (decision.action === 'give-up') {
        throw new MigrationError(
          'ERR_MIGRATION_CONVERGENCE',
          `Cannot migrate in time: after ${pass} passes the guest would stand for ${Math.round(decision.expectedDowntimeMs)} ms, limit is ${this.#options.parameters['downtime-limit']} ms`,
        );
      }
      if (decision.throttle !== throttle) {
        throttle = decision.throttle;
        await this.#guard(this.#machine.throttle(throttle));
      }
    }
  }

  async #pass(pass: number, limited: boolean): Promise<void> {
    this.#send({ kind: 'passBegin', pass });
    this.#update({ round: pass });
    this.#inPass = true;
    let totals: PassTotals;
    try {
      totals = await this.#guard(this.#machine.pass(pass, (record) => this.#forward(record, limited)));
    } finally {
      if (!this.#abort.signal.aborted) this.#inPass = false;
    }
    this.#update({
      normalPages: this.current.normalPages + totals.pages - totals.zeroPages,
      zeroPages: this.current.zeroPages + totals.zeroPages,
    });
    this.#send({ kind: 'passEnd', pass, records: totals.records, pages: totals.pages });
  }

  /** Called for each record from the machine's link: must not throw there. */
  #forward(record: Uint8Array, limited: boolean): void {
    if (this.#abort.signal.aborted) return;
    try {
      const header = decodeRecordHeader(record);
      this.#session.sent('record');
      const more = this.#wire!.sendRecord(record);
      const nowMs = performance.now();
      const waitMs = limited ? this.#limiter.take(record.length, nowMs) : 0;
      if (nowMs - this.#lastEmitMs > PROGRESS_MS) {
        const remaining = this.current.totalBytes - header.firstPage * PAGE_BYTES;
        this.#update(header.pass === 1 ? { remainingBytes: Math.max(remaining, 0) } : {});
      }
      if ((!more || waitMs > 1) && !this.#held) void this.#hold(waitMs);
    } catch (error) {
      this.#fail(toError(error));
    }
  }

  /** Stops reading from the machine until the peer and the bandwidth limit allow more. */
  async #hold(waitMs: number): Promise<void> {
    this.#held = true;
    this.#machine.pauseReading();
    try {
      const sleep = new Promise((resolve) => setTimeout(resolve, waitMs));
      await Promise.all([this.#wire!.drained(this.#idleMs), waitMs > 1 ? sleep : undefined]);
    } catch (error) {
      this.#fail(toError(error));
    } finally {
      this.#held = false;
      this.#machine.resumeReading();
    }
  }

  async #switchover(lastPass: number): Promise<void> {
    const { parameters } = this.#options;
    this.#update({ status: 'device' });
    const stoppedMs = performance.now();
    const timeoutMs = parameters['switchover-timeout'];
    const timer = setTimeout(() => {
      this.#fail(
        new MigrationError(
          'ERR_MIGRATION_TIMEOUT',
          `Cannot switch over: the destination is not ready in ${timeoutMs} ms`,
        ),
      );
    }, timeoutMs);
    try {
      const running = await this.#guard(this.#machine.pause());
      this.#send({ kind: 'stopSource', running });
      const remainingPages = await this.#guard(this.#machine.sync());
      this.#update({ remainingBytes: remainingPages * PAGE_BYTES });
      if (remainingPages > 0) await this.#pass(lastPass + 1, false);
      await this.#sendDevices(parameters['verify-ram']);
      if (remainingPages > 0) await this.#expectAck(lastPass + 1, timeoutMs);
      await this.#expect('ready', timeoutMs);
      await this.#guard(this.#machine.release());
      this.#abort.signal.throwIfAborted();
    } finally {
      clearTimeout(timer);
    }
    this.#committed = true;
    this.#send({ kind: 'commit' });
    await this.#expect('running', Math.max(timeoutMs, HANDSHAKE_TIMEOUT_MS));
    const downtimeMs = performance.now() - stoppedMs;
    try {
      await this.#machine.handover();
    } catch {
      // The machine is gone; the guest runs at the destination and that is what was wanted
    }
    this.#update({ status: 'completed', downtimeMs, remainingBytes: 0 });
  }

  async #sendDevices(verifyRam: boolean): Promise<void> {
    const state = await this.#guard(this.#machine.save());
    this.#stateBytes = state.length;
    for (let offset = 0; offset < state.length; offset += DEVICE_STATE_CHUNK_BYTES) {
      const chunk = state.subarray(offset, offset + DEVICE_STATE_CHUNK_BYTES);
      this.#send({ kind: 'deviceState', offset, totalBytes: state.length, chunk });
      if (offset > 1 << 20) await this.#guard(this.#wire!.drained(this.#idleMs));
    }
    const ram = await this.#guard(this.#machine.digest(verifyRam));
    const devices = new Uint8Array(createHash('sha256').update(state).digest());
    this.#send({ kind: 'digest', ram, devices, recomputed: verifyRam });
  }

  async #rollback(error: Error): Promise<void> {
    if (this.#committed && !(error instanceof MigrationError && error.code === 'ERR_MIGRATION_ABORTED')) {
      // Either the destination runs the guest or it does not; running it here too could destroy its disks.
      const unknown = new MigrationError(
        'ERR_MIGRATION_UNKNOWN_OUTCOME',
        `The guest was handed over and no answer came (${error.message}): it stays paused here; look at the destination, then end this machine or use migrate-reclaim`,
        { cause: error },
      );
      this.#finish('failed', unknown);
      return;
    }
    this.#fail(error); // ends what still waits
    if (this.#wire?.writable === true && this.#session.phase !== 'aborted') {
      try {
        this.#send({ kind: 'abort', reason: printable(error.message) });
      } catch {
        // The connection ended meanwhile; that tells the destination the same
      }
    }
    this.#wire?.close();
    if (await succeeded(this.#tracking)) {
      if (this.#inPass) this.#machine.stopPass();
      try {
        await this.#machine.untrack();
      } catch (cause) {
        this.#finish(
          'failed',
          new MigrationError('ERR_MIGRATION_MACHINE', `${error.message}; ${toError(cause).message}`),
        );
        return;
      }
    }
    const cancelled = error instanceof MigrationError && error.code === 'ERR_MIGRATION_CANCELLED';
    this.#finish(cancelled ? 'cancelled' : 'failed', cancelled ? undefined : error);
  }

  #finish(status: 'failed' | 'cancelled', error: Error | undefined): void {
    this.#update({
      status,
      throttle: 0,
      ...(error === undefined ? {} : { error: { code: errorCode(error), message: error.message } }),
    });
  }

  /** Reads all that the destination sends, so that its Abort and its end are seen at any moment. */
  async #read(wire: Wire): Promise<void> {
    try {
      for (;;) {
        const frame = await wire.next(FOREVER_MS);
        if (frame.kind === 'record') throw new WireError('ERR_WIRE_STATE', 'Cannot accept a record of the destination');
        const { message } = frame;
        this.#session.received(message.kind);
        if (message.kind === 'abort') {
          throw new MigrationError('ERR_MIGRATION_ABORTED', `The destination ended the migration: ${message.reason}`);
        }
        if (message.kind === 'refuse') {
          throw new MigrationError('ERR_MIGRATION_REFUSED', `The destination refuses: ${message.reasons.join('; ')}`);
        }
        if (this.#inbox.length >= MAX_WAITING_MESSAGES) {
          throw new WireError('ERR_WIRE_LIMIT', `Cannot queue messages: ${MAX_WAITING_MESSAGES} wait`);
        }
        this.#inbox.push(message);
        this.#inboxWake?.();
      }
    } catch (error) {
      if (!this.#finished) this.#fail(toError(error));
    }
  }

  async #expect<Kind extends ControlKind>(kind: Kind, timeoutMs: number): Promise<Wanted<Kind>> {
    if (this.#inbox.length === 0) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      this.#inboxWake = resolve;
      const timer = setTimeout(() => {
        reject(
          new MigrationError('ERR_MIGRATION_TIMEOUT', `Cannot go on: no ${kind} of the destination in ${timeoutMs} ms`),
        );
      }, timeoutMs);
      try {
        await this.#guard(promise);
      } finally {
        clearTimeout(timer);
        this.#inboxWake = undefined;
      }
    }
    const message = this.#inbox.shift()!;
    if (message.kind !== kind) {
      throw new WireError('ERR_WIRE_STATE', `Cannot accept ${message.kind} of the destination: expected ${kind}`);
    }
    return message as Wanted<Kind>;
  }

  async #expectAck(pass: number, timeoutMs: number): Promise<void> {
    const ack = await this.#expect('passAck', timeoutMs);
    if (ack.pass !== pass) {
      throw new WireError('ERR_WIRE_VALUE', `Cannot accept passAck of pass ${ack.pass}: expected ${pass}`);
    }
  }

  #send(message: ControlMessage): void {
    this.#session.sent(message.kind);
    this.#wire!.send(message);
  }

  get #idleMs(): number {
    return this.#options.idleTimeoutMs ?? IDLE_TIMEOUT_MS;
  }

  #fail(error: Error): void {
    if (!this.#abort.signal.aborted) this.#abort.abort(error);
  }

  /** The work's result, or the reason for which the migration ends, whichever comes first. */
  #guard<T>(work: Promise<T>): Promise<T> {
    const { signal } = this.#abort;
    return new Promise<T>((resolve, reject) => {
      const onAbort = () => reject(signal.reason);
      if (signal.aborted) onAbort();
      signal.addEventListener('abort', onAbort, { once: true });
      work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
    });
  }

  #update(change: Partial<MigrationProgress>): void {
    const nowMs = performance.now();
    this.#lastEmitMs = nowMs;
    this.#progress.next({
      ...this.current,
      ...change,
      transferredBytes: this.#wire?.sentBytes ?? 0,
      totalMs: nowMs - this.#startedMs,
    });
  }
}

async function succeeded(work: Promise<void> | undefined): Promise<boolean> {
  try {
    await work;
    return work !== undefined;
  } catch {
    return false; // the refusal is what the migration failed with
  }
}

function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/** The machine's codes are its own; what a caller sees is ours. */
export function errorCode(error: Error): string {
  if (error instanceof MachineFault)
    return error.code.startsWith('ERR_MIGRATION_') ? error.code : 'ERR_MIGRATION_MACHINE';
  return 'code' in error && typeof error.code === 'string' ? error.code : 'ERR_MIGRATION_MACHINE';
}
