import { createHash, randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import type { Observable } from 'rxjs';
import { BehaviorSubject } from 'rxjs/internal/BehaviorSubject';
import { WireError } from '../../protocols/bytes/mod.ts';
import {
  DEVICE_STATE_CHUNK_BYTES,
  decodeRecordHeader,
  HANDSHAKE_TIMEOUT_MS,
  IDLE_TIMEOUT_MS,
  PAGE_BYTES,
  type PassTotals,
  SESSION_ID_BYTES,
} from '../../protocols/migration/mod.ts';
import { Convergence, type Decision } from './convergence.ts';
import { EndSignal, toError } from './end_signal.ts';
import { type MachineClient, MachineFault } from './machine_client.ts';
import { makeManifest } from './manifest.ts';
import { MigrationError } from './migration_error.ts';
import type { MigrationParameters } from './parameters.ts';
import { type MigrationProgress, NO_PROGRESS } from './progress.ts';
import { RateLimiter } from './rate_limiter.ts';
import { SourcePeer } from './source_peer.ts';

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

/**
 * Sends one guest away. Until Commit is sent the guest is ours and any failure, of the peer, the connection, the
 * machine or by {@link cancel}, lets it run on here; afterwards only the destination's Abort gives it back.
 */
export class MigrationSource {
  readonly #options: MigrationSourceOptions;
  readonly #machine: MachineClient;
  readonly #end = new EndSignal();
  readonly #limiter: RateLimiter;
  readonly #progress: BehaviorSubject<MigrationProgress>;
  readonly #startedMs = performance.now();
  #peer: SourcePeer | undefined;
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
    this.#end.end(new MigrationError('ERR_MIGRATION_CANCELLED', 'Migration cancelled'));
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
    this.#peer?.close();
    this.#progress.complete();
    return this.#progress.value;
  }

  async #setup(): Promise<void> {
    const description = await this.#end.guard(this.#machine.describe());
    const totalBytes = description.ramPages * PAGE_BYTES;
    this.#update({ totalBytes, remainingBytes: totalBytes });
    const stream = await this.#options.connect(this.#end.signal);
    const peer = new SourcePeer(stream, this.#end);
    this.#peer = peer;
    const sessionId = new Uint8Array(randomBytes(SESSION_ID_BYTES));
    const version = PROTOCOL_VERSION;
    peer.send({ kind: 'hello', versionMin: version, versionMax: version, sessionId, features: [] });
    const ack = await peer.expect('helloAck', HANDSHAKE_TIMEOUT_MS);
    if (ack.version !== PROTOCOL_VERSION) {
      throw new WireError('ERR_WIRE_VALUE', `Cannot speak version ${ack.version}: offered ${PROTOCOL_VERSION}`);
    }
    if (Buffer.compare(ack.sessionId, sessionId) !== 0) {
      throw new WireError('ERR_WIRE_VALUE', 'Cannot accept helloAck of the destination: it is of another session');
    }
    peer.send({ kind: 'manifest', ...makeManifest(description) });
    await peer.expect('manifestAck', HANDSHAKE_TIMEOUT_MS);
    this.#tracking = this.#machine.track();
    await this.#end.guard(this.#tracking);
    peer.send({ kind: 'begin' });
    this.#update({ status: 'active', setupMs: performance.now() - this.#startedMs });
  }

  /** Passes until what is left fits into the downtime; gives the number of the last. */
  async #passes(): Promise<number> {
    const convergence = new Convergence(this.#options.parameters);
    let throttle = 0;
    for (let pass = 1; ; pass++) {
      const begun = performance.now();
      const sentBefore = this.#peer!.sentBytes;
      await this.#pass(pass, true);
      await this.#peer!.expectAck(pass, this.#idleMs);
      const durationMs = performance.now() - begun;
      const bytes = this.#peer!.sentBytes - sentBefore;
      const asked = performance.now();
      const remainingPages = await this.#end.guard(this.#machine.sync());
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
        await this.#end.guard(this.#machine.throttle(throttle));
      }
    }
  }

  async #pass(pass: number, limited: boolean): Promise<void> {
    this.#peer!.send({ kind: 'passBegin', pass });
    this.#update({ round: pass });
    this.#inPass = true;
    let totals: PassTotals;
    try {
      totals = await this.#end.guard(this.#machine.pass(pass, (record) => this.#forward(record, limited)));
    } finally {
      if (!this.#end.ended) this.#inPass = false;
    }
    this.#update({
      normalPages: this.current.normalPages + totals.pages - totals.zeroPages,
      zeroPages: this.current.zeroPages + totals.zeroPages,
    });
    this.#peer!.send({ kind: 'passEnd', pass, records: totals.records, pages: totals.pages });
  }

  /** Called for each record from the machine's link: must not throw there. */
  #forward(record: Uint8Array, limited: boolean): void {
    if (this.#end.ended) return;
    try {
      const header = decodeRecordHeader(record);
      const more = this.#peer!.sendRecord(record);
      const nowMs = performance.now();
      const waitMs = limited ? this.#limiter.take(record.length, nowMs) : 0;
      if (nowMs - this.#lastEmitMs > PROGRESS_MS) {
        const remaining = this.current.totalBytes - header.firstPage * PAGE_BYTES;
        this.#update(header.pass === 1 ? { remainingBytes: Math.max(remaining, 0) } : {});
      }
      if ((!more || waitMs > 1) && !this.#held) void this.#hold(waitMs);
    } catch (error) {
      this.#end.end(toError(error));
    }
  }

  /** Stops reading from the machine until the peer and the bandwidth limit allow more. */
  async #hold(waitMs: number): Promise<void> {
    this.#held = true;
    this.#machine.pauseReading();
    try {
      const sleep = new Promise((resolve) => setTimeout(resolve, waitMs));
      await Promise.all([this.#peer!.drained(this.#idleMs), waitMs > 1 ? sleep : undefined]);
    } catch (error) {
      this.#end.end(toError(error));
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
      this.#end.end(
        new MigrationError(
          'ERR_MIGRATION_TIMEOUT',
          `Cannot switch over: the destination is not ready in ${timeoutMs} ms`,
        ),
      );
    }, timeoutMs);
    try {
      const running = await this.#end.guard(this.#machine.pause());
      this.#peer!.send({ kind: 'stopSource', running });
      const remainingPages = await this.#end.guard(this.#machine.sync());
      this.#update({ remainingBytes: remainingPages * PAGE_BYTES });
      if (remainingPages > 0) await this.#pass(lastPass + 1, false);
      await this.#sendDevices(parameters['verify-ram']);
      if (remainingPages > 0) await this.#peer!.expectAck(lastPass + 1, timeoutMs);
      await this.#peer!.expect('ready', timeoutMs);
      await this.#end.guard(this.#machine.release());
      this.#end.check();
    } finally {
      clearTimeout(timer);
    }
    this.#peer!.send({ kind: 'commit' }); // throws when it could not be sent: the guest is still ours then
    this.#committed = true;
    await this.#peer!.expect('running', Math.max(timeoutMs, HANDSHAKE_TIMEOUT_MS));
    const downtimeMs = performance.now() - stoppedMs;
    try {
      await this.#machine.handover();
    } catch {
      // The machine is gone; the guest runs at the destination and that is what was wanted
    }
    this.#update({ status: 'completed', downtimeMs, remainingBytes: 0 });
  }

  async #sendDevices(verifyRam: boolean): Promise<void> {
    const state = await this.#end.guard(this.#machine.save());
    this.#stateBytes = state.length;
    for (let offset = 0; offset < state.length; offset += DEVICE_STATE_CHUNK_BYTES) {
      const chunk = state.subarray(offset, offset + DEVICE_STATE_CHUNK_BYTES);
      this.#peer!.send({ kind: 'deviceState', offset, totalBytes: state.length, chunk });
      if (offset > 1 << 20) await this.#end.guard(this.#peer!.drained(this.#idleMs));
    }
    const ram = await this.#end.guard(this.#machine.digest(verifyRam));
    const devices = new Uint8Array(createHash('sha256').update(state).digest());
    this.#peer!.send({ kind: 'digest', ram, devices, recomputed: verifyRam });
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
    this.#end.end(error); // ends what still waits
    this.#peer?.abort(error.message);
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

  get #idleMs(): number {
    return this.#options.idleTimeoutMs ?? IDLE_TIMEOUT_MS;
  }

  #update(change: Partial<MigrationProgress>): void {
    const nowMs = performance.now();
    this.#lastEmitMs = nowMs;
    this.#progress.next({
      ...this.current,
      ...change,
      transferredBytes: this.#peer?.sentBytes ?? 0,
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

/** The machine's codes are its own; what a caller sees is ours. */
export function errorCode(error: Error): string {
  if (error instanceof MachineFault)
    return error.code.startsWith('ERR_MIGRATION_') ? error.code : 'ERR_MIGRATION_MACHINE';
  return 'code' in error && typeof error.code === 'string' ? error.code : 'ERR_MIGRATION_MACHINE';
}
