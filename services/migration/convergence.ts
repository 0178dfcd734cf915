import { PAGE_BYTES } from '../../protocols/migration/mod.ts';
import type { MigrationParameters } from './parameters.ts';

/** One pass, after the destination has stored it and the dirty marks were collected again */
export interface PassReport {
  readonly pass: number;
  /** On the wire, in `bytes` */
  readonly bytes: number;
  /** From its begin to its acknowledgement, in `ms` */
  readonly durationMs: number;
  /** Dirtied meanwhile */
  readonly remainingPages: number;
  /** Of the whole migration, in `ms` */
  readonly elapsedMs: number;
  /** One question to the machine and its answer, in `ms`: on a busy host the hops are what a short gap is made of */
  readonly hopMs: number;
  /** Last known size of the device state, in `bytes` */
  readonly stateBytes: number;
}

export type Decision = {
  readonly action: 'pass' | 'switchover' | 'give-up';
  /** For the harts from now on, in percent */
  readonly throttle: number;
  readonly expectedDowntimeMs: number;
};

/** A pass with fewer bytes says nothing about the link: its time is latency. */
const MEASURABLE_BYTES = 1 << 20;
/** Pausing harts, flushing disks, saving and validating devices, in `ms` */
const SWITCHOVER_OVERHEAD_MS = 3;
/** Pause, save, digest, release here; digest, prepare, commit there; two messages and their answers */
const SWITCHOVER_HOPS = 9;
/** Of passes, for the goodput that the forecast uses: the slowest of them counts */
const GOODPUT_WINDOW = 3;
/** A pass must leave less than this part of what the one before left, or it is a stall */
const PROGRESS = 0.9;
const STALLS_BEFORE_THROTTLE = 2;

/**
 * Decides after each pass: another one, switch over, slow the guest down, or give up. The forecast uses what the
 * destination has acknowledged, not what was queued, and the slowest of the last passes.
 */
export class Convergence {
  readonly #parameters: MigrationParameters;
  #goodputs: number[] = [];
  #leastRemaining = Number.POSITIVE_INFINITY;
  #stalls = 0;
  #throttle = 0;

  constructor(parameters: MigrationParameters) {
    this.#parameters = parameters;
  }

  decide(report: PassReport): Decision {
    const parameters = this.#parameters;
    if (report.bytes >= MEASURABLE_BYTES && report.durationMs > 0) {
      this.#goodputs = [...this.#goodputs, report.bytes / report.durationMs].slice(-GOODPUT_WINDOW);
    }
    const { transferMs, overheadMs } = this.#forecast(report);
    const expectedDowntimeMs = transferMs + overheadMs;
    const decide = (action: Decision['action']): Decision => ({ action, throttle: this.#throttle, expectedDowntimeMs });
    const limitMs = parameters['downtime-limit'];
    // On a host so busy that the hops alone break the limit, more passes and a slower guest do not help: they may
    // take half of it in this decision, and the forecast still tells the truth.
    if (transferMs + Math.min(overheadMs, limitMs / 2) <= limitMs) return decide('switchover');
    // Nothing is left to wait for: another pass cannot make it shorter.
    if (report.remainingPages === 0) return decide('switchover');
    const late = parameters.deadline > 0 && report.elapsedMs >= parameters.deadline;
    if (late || report.pass >= parameters['max-passes']) {
      return decide(parameters['at-deadline'] === 'stop-and-copy' ? 'switchover' : 'give-up');
    }
    if (report.remainingPages >= this.#leastRemaining * PROGRESS) {
      if (++this.#stalls >= STALLS_BEFORE_THROTTLE && parameters['auto-converge']) {
        this.#throttle = this.#nextThrottle();
        this.#stalls = 0;
      }
    } else {
      this.#stalls = 0;
    }
    this.#leastRemaining = Math.min(this.#leastRemaining, report.remainingPages);
    return decide('pass');
  }

  #nextThrottle(): number {
    const parameters = this.#parameters;
    const next =
      this.#throttle === 0 ? parameters['cpu-throttle-initial'] : this.#throttle + parameters['cpu-throttle-increment'];
    return Math.min(next, parameters['max-cpu-throttle']);
  }

  /** Moving what is left, and everything else that happens while the guest stands, both in `ms` */
  #forecast(report: PassReport): { transferMs: number; overheadMs: number } {
    const overheadMs = SWITCHOVER_OVERHEAD_MS + SWITCHOVER_HOPS * report.hopMs;
    const bytes = report.remainingPages * PAGE_BYTES + report.stateBytes;
    const goodput = Math.min(...this.#goodputs);
    if (Number.isFinite(goodput)) return { transferMs: bytes / goodput, overheadMs };
    // Nothing measured: all that went so far was zero pages, and what is left is little or not known.
    return { transferMs: bytes < MEASURABLE_BYTES ? 0 : Number.MAX_SAFE_INTEGER, overheadMs };
  }
}
