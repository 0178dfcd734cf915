import { asImageError } from '../images/disk_image.ts';
import { TokenBucket } from './throttle.ts';

export type JobType = 'mirror' | 'backup' | 'commit' | 'stream';

/** As QMP's BlockJobInfo has it */
export interface JobInfo {
  readonly type: JobType;
  readonly device: string;
  /** How much there is to do, and how much is done, in `bytes`; both may grow */
  readonly len: number;
  readonly offset: number;
  readonly busy: boolean;
  readonly paused: boolean;
  /** In `bytes` a second; 0: no limit */
  readonly speed: number;
  readonly ready: boolean;
  readonly status: 'running' | 'paused' | 'ready' | 'standby' | 'concluded';
}

export type JobEvent = 'BLOCK_JOB_COMPLETED' | 'BLOCK_JOB_CANCELLED' | 'BLOCK_JOB_READY';

/** A request to a job that it cannot follow now */
export class JobError extends Error {
  override readonly name = 'JobError';
  readonly code = 'ERR_BLOCK_JOB';
}

class Cancelled extends Error {}

/** What a kind of job has to do. `job` is asked before each piece, and told of each. */
export interface JobWork {
  readonly type: JobType;
  readonly lengthBytes: number;
  /** Does the work; for one that follows the disk, until it has caught up */
  run(job: BlockJob): Promise<void>;
  /** The job follows the disk until it is asked to complete */
  readonly follows?: boolean;
  /** Goes on after {@link run}, piece by piece: false where there is nothing to do now */
  follow?(job: BlockJob): Promise<boolean>;
  /** The last step; with `pivot` the disk goes on elsewhere */
  finish(pivot: boolean): Promise<void>;
  /** Gives up whatever it holds; always the last call */
  close(failed: boolean): Promise<void>;
}

/** Nothing to copy for a job that follows: look again after, in `ms` */
const IDLE_MS = 20;

/** One job on one disk, from its start to its end. */
export class BlockJob {
  readonly id: string;
  readonly done: Promise<void>;
  readonly #work: JobWork;
  readonly #emit: (event: JobEvent, data: Record<string, string | number>) => void;
  #speed: number;
  #bucket: TokenBucket | undefined;
  #paused = false;
  #ready = false;
  #cancelled = false;
  #force = false;
  #completing = false;
  #offset = 0;
  #length: number;
  readonly #wakers = new Set<() => void>();

  constructor(
    id: string,
    work: JobWork,
    options: { speed: number; emit: (event: JobEvent, data: Record<string, string | number>) => void },
  ) {
    this.id = id;
    this.#work = work;
    this.#emit = options.emit;
    this.#length = work.lengthBytes;
    this.#speed = 0;
    this.setSpeed(options.speed);
    this.done = this.#run();
  }

  get info(): JobInfo {
    const { type } = this.#work;
    const status = this.#paused ? (this.#ready ? 'standby' : 'paused') : this.#ready ? 'ready' : 'running';
    return {
      type,
      device: this.id,
      len: this.#length,
      offset: this.#offset,
      busy: !this.#paused,
      paused: this.#paused,
      speed: this.#speed,
      ready: this.#ready,
      status,
    };
  }

  setSpeed(bytesPerSecond: number): void {
    this.#speed = bytesPerSecond;
    this.#bucket = bytesPerSecond === 0 ? undefined : new TokenBucket({ average: bytesPerSecond }, performance.now());
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#wake();
  }

  /** After READY, without `force`, the copy is finished as it is and kept. */
  cancel(force: boolean): void {
    this.#cancelled = true;
    this.#force = force;
    this.#paused = false;
    this.#wake();
  }

  /** @throws JobError before the job is ready, or where it ends by itself */
  complete(): void {
    if (!this.#ready) {
      throw new JobError(`The active block job '${this.id}' cannot be completed`);
    }
    this.#completing = true;
    this.#paused = false;
    this.#wake();
  }

  /** Waits until the next piece may be copied. @throws when the job is cancelled */
  async next(): Promise<void> {
    for (;;) {
      if (this.#cancelled && !(this.#ready && !this.#force)) throw new Cancelled();
      if (this.#paused) {
        await new Promise<void>((resolve) => this.#wakers.add(resolve));
        continue;
      }
      const waitMs = this.#bucket?.waitMs(performance.now()) ?? 0;
      if (waitMs <= 0) return;
      await this.#sleep(Math.ceil(waitMs));
    }
  }

  /** `bytes` are done; those that were copied count for the speed. */
  progress(bytes: number, copiedBytes = bytes): void {
    this.#offset += bytes;
    this.#length = Math.max(this.#length, this.#offset);
    this.#bucket?.fill(copiedBytes);
  }

  async #run(): Promise<void> {
    let failed: Error | undefined;
    let cancelled = false;
    try {
      await this.#work.run(this);
      if (this.#work.follows === true) await this.#follow();
      await this.#work.finish(!this.#cancelled);
    } catch (error) {
      if (error instanceof Cancelled) cancelled = true;
      else failed = asImageError(error);
    }
    try {
      await this.#work.close(cancelled || failed !== undefined);
    } catch (error) {
      failed ??= asImageError(error);
    }
    const { type, len, offset, speed } = this.info;
    this.#emit(cancelled ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED', {
      type,
      device: this.id,
      len,
      offset,
      speed,
      ...(failed === undefined ? {} : { error: failed.message }),
    });
  }

  async #follow(): Promise<void> {
    this.#ready = true;
    const { type, len, offset, speed } = this.info;
    this.#emit('BLOCK_JOB_READY', { type, device: this.id, len, offset, speed });
    while (!this.#completing && !this.#cancelled) {
      await this.next();
      if (!(await this.#work.follow?.(this))) await this.#sleep(IDLE_MS);
    }
    if (this.#cancelled && this.#force) throw new Cancelled();
  }

  async #sleep(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    this.#wakers.add(resolve);
    await promise;
    clearTimeout(timer);
    this.#wakers.delete(resolve);
  }

  #wake(): void {
    for (const resolve of this.#wakers) resolve();
    this.#wakers.clear();
  }
}
