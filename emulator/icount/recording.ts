import type { InstructionClock } from './clock.ts';
import { ReplayError } from './replay_error.ts';
import type { ReplayLog } from './replay_log.ts';

/** Instructions between two checkpoints of a recording */
const CHECKPOINT = 1 << 26;
const NS_PER_MS = 1_000_000;

export interface RecordingOptions {
  readonly clock: InstructionClock;
  readonly log: ReplayLog;
  /** Of the harts' registers, and of everything */
  readonly digests: { harts(): bigint; machine(): bigint };
  /** The guest has powered off, or failed */
  readonly guestEnded: () => boolean;
  /** A replay has come to its end; `matches`: its state is the recorded one */
  readonly onReplayEnd: (matches: boolean) => void;
}

/** The proofs in a recording, written or held against the run: checkpoints and the end. */
export class Recording {
  readonly #options: RecordingOptions;
  #nextCheckpoint = CHECKPOINT;
  #replayed = false;

  constructor(options: RecordingOptions) {
    this.#options = options;
  }

  /** Between two runs: writes or compares a checkpoint where one is due. @throws ReplayError */
  look(round: number): void {
    const { log, clock, digests } = this.#options;
    const { instructions, ns } = clock;
    if (instructions < this.#nextCheckpoint) return;
    this.#nextCheckpoint = instructions + CHECKPOINT;
    if (log.mode === 'off') return;
    const digest = digests.harts();
    if (log.mode === 'record') {
      log.record({ kind: 'checkpoint', round, ns, instructions, digest });
      return;
    }
    const record = log.take('checkpoint', round);
    if (record.digest !== digest || record.instructions !== instructions) {
      throw new ReplayError(
        `Cannot replay: after ${instructions} instructions the registers are not the recorded ones`,
      );
    }
  }

  /** True once, where the recording ends; {@link tellEnd} has to follow. @throws ReplayError */
  endOfReplay(round: number): boolean {
    const { log } = this.#options;
    if (this.#replayed || log.mode !== 'replay') return false;
    const next = log.peek();
    if (next !== undefined && next.round > round) return false;
    if (next !== undefined && next.kind !== 'end') {
      // Its round is over, and the guest did not do what it belongs to
      throw new ReplayError(`Cannot replay: the guest went past ${next.kind} in round ${next.round} of the recording`);
    }
    this.#replayed = true;
    if (next === undefined) throw new ReplayError('Cannot replay further: the recording was cut off here');
    return true;
  }

  /** Compares the state with the recorded one; the harts are asked to pause. @throws ReplayError */
  tellEnd(round: number): void {
    const { log, clock, digests, onReplayEnd } = this.#options;
    const { instructions, digest } = log.take('end', round);
    onReplayEnd(instructions === clock.instructions && digest === digests.machine());
  }

  /** A guest that has ended does not come to what the recording goes on with. @throws ReplayError */
  checkGuestEnd(round: number): void {
    const { log, guestEnded } = this.#options;
    if (this.#replayed || log.mode !== 'replay' || !guestEnded()) return;
    const next = log.peek();
    const found = next === undefined ? 'was cut off' : `goes on with ${next.kind} in round ${next.round}`;
    throw new ReplayError(`Cannot replay: the guest ends in round ${round}, the recording ${found}`);
  }

  /** A replay that fails says how far it has come. */
  withPlace(error: Error, round: number): Error {
    const { log, clock } = this.#options;
    if (log.mode !== 'replay') return error;
    const place = `round ${round}, ${clock.instructions} instructions, ${(clock.ns / NS_PER_MS).toFixed(3)} ms`;
    return new ReplayError(`${error.message} (${place})`, { cause: error });
  }

  /** Writes the end of a recording; the machine stands. */
  finish(round: number): void {
    const { log, clock, digests } = this.#options;
    if (log.mode !== 'record') return;
    log.record({ kind: 'end', round, ns: clock.ns, instructions: clock.instructions, digest: digests.machine() });
  }
}
