import { DirtyBitmap } from '../images/dirty_bitmap.ts';
import type { DiskImage } from '../images/disk_image.ts';
import { type ImageSource, MAX_CHAIN, openImage } from '../images/open_image.ts';
import { FdImageFile, Qcow2Image } from '../images/qcow2/mod.ts';
import { flagField, numberField, optionalTextField, recordOf, textField } from '../parameters.ts';
import { BackupWork } from './backup.ts';
import { BlockJob, JobError, type JobEvent, type JobInfo, type JobWork } from './block_job.ts';
import { Layers } from './chain.ts';
import { type BackingName, CommitWork } from './commit.ts';
import type { JobDisk } from './job_disk.ts';
import { MirrorWork } from './mirror.ts';
import { StreamWork } from './stream.ts';
import { Throttle, type ThrottleLimits, type ThrottleRate } from './throttle.ts';

type Fields = Readonly<Record<string, unknown>>;

const MAX_JOBS = 16;
const MAX_RATE = Number.MAX_SAFE_INTEGER;
const LIMIT_NAMES = ['opsTotal', 'opsRead', 'opsWrite', 'bytesTotal', 'bytesRead', 'bytesWrite'] as const;

/**
 * Jobs, limits and bitmaps of the disks of one role, as its control link asks for them: `job-start`, `job-control`,
 * `query-jobs`, `disk-throttle`, `query-throttle`, `bitmap`. Files come as sources that the supervisor has opened.
 */
export class JobControl {
  readonly #disk: (id: string) => JobDisk;
  readonly #emit: (event: JobEvent, data: object) => void;
  readonly #jobs = new Map<string, { readonly job: BlockJob; readonly disk: JobDisk }>();
  /** Their targets are being opened */
  readonly #starting = new Map<string, JobDisk>();

  constructor(disk: (id: string) => JobDisk, emit: (event: JobEvent, data: object) => void) {
    this.#disk = disk;
    this.#emit = emit;
  }

  /** Job ids of a disk: it is not to be handed over meanwhile */
  jobsOf(disk: JobDisk): string[] {
    const running = [...this.#jobs].flatMap(([id, entry]) => (entry.disk === disk ? [id] : []));
    return [...running, ...[...this.#starting].flatMap(([id, other]) => (other === disk ? [id] : []))];
  }

  query(): JobInfo[] {
    return [...this.#jobs.values()].map(({ job }) => job.info);
  }

  /** `{job, type, disk, speed?, target?, sync?, isNew?, bitmap?, topDepth?, baseDepth?, baseFile?, baseFormat?, overlay?}` */
  async start(params: unknown): Promise<object> {
    const fields = recordOf(params, 'job-start');
    const id = textField(fields, 'job');
    const disk = this.#disk(textField(fields, 'disk'));
    const type = textField(fields, 'type');
    if (this.#jobs.has(id) || this.#starting.has(id)) throw new JobError(`Job ID '${id}' already in use`);
    if (this.#jobs.size + this.#starting.size >= MAX_JOBS)
      throw new JobError(`Cannot start job '${id}': ${MAX_JOBS} run already`);
    if (this.jobsOf(disk).length > 0) throw new JobError(`Cannot start job '${id}': another works on the disk`);
    const speed = fields.speed === undefined ? 0 : numberField(fields, 'speed', 0, MAX_RATE);
    const pivot: { done: boolean } = { done: false };
    let work: JobWork;
    this.#starting.set(id, disk);
    try {
      work = await this.#work(type, id, disk, fields, pivot);
    } finally {
      this.#starting.delete(id);
    }
    const job = new BlockJob(id, work, {
      speed,
      emit: (event, data) => this.#emit(event, { ...data, pivoted: pivot.done }),
    });
    this.#jobs.set(id, { job, disk });
    void job.done.finally(() => this.#jobs.delete(id));
    return {};
  }

  /** `{job, action, force?, speed?}` */
  control(params: unknown): object {
    const fields = recordOf(params, 'job-control');
    const id = textField(fields, 'job');
    const job = this.#jobs.get(id)?.job;
    if (job === undefined) throw new JobError(`Block job '${id}' not found`);
    const action = textField(fields, 'action');
    if (action === 'cancel') job.cancel(flagField(fields, 'force', false));
    else if (action === 'complete') job.complete();
    else if (action === 'pause') job.pause();
    else if (action === 'resume') job.resume();
    else if (action === 'set-speed') job.setSpeed(numberField(fields, 'speed', 0, MAX_RATE));
    else throw new JobError(`Cannot ${action} a job: expected cancel, complete, pause, resume or set-speed`);
    return {};
  }

  /** `{disk, opsTotal: {average, burst?, burstSeconds?}, …, opBytes?}`: what is left out has no limit. */
  setThrottle(params: unknown): object {
    const fields = recordOf(params, 'disk-throttle');
    this.#disk(textField(fields, 'disk')).throttle = new Throttle(throttleLimits(fields));
    return {};
  }

  queryThrottle(params: unknown): ThrottleLimits {
    return this.#disk(textField(recordOf(params, 'query-throttle'), 'disk')).throttle?.limits ?? {};
  }

  /** `{disk, action, name, granularity?, persistent?, disabled?, from?}` */
  async bitmap(params: unknown): Promise<object> {
    const fields = recordOf(params, 'bitmap');
    const disk = this.#disk(textField(fields, 'disk'));
    const name = textField(fields, 'name');
    const { bitmaps, image } = disk;
    const action = textField(fields, 'action');
    await disk.alone(async () => {
      if (action === 'add') {
        const granularity =
          fields.granularity === undefined ? undefined : numberField(fields, 'granularity', 512, 2 ** 31);
        const persistent = flagField(fields, 'persistent', false);
        if (persistent && !(image instanceof Qcow2Image && image.header.version === 3)) {
          throw new JobError(`Cannot keep bitmap '${name}': only qcow2 images of version 3 can`);
        }
        const disabled = flagField(fields, 'disabled', false);
        bitmaps.add(name, new DirtyBitmap(disk.sizeBytes, granularity, { persistent, disabled }));
      } else if (action === 'remove') {
        if (!bitmaps.remove(name)) throw new JobError(`Dirty bitmap '${name}' not found`);
      } else if (action === 'merge') {
        const target = bitmaps.get(name);
        const from = fields.from;
        if (!Array.isArray(from) || from.length > 64) throw new JobError('Cannot merge: expected a list of bitmaps');
        const sources = from.map((source) => bitmaps.get(String(source)));
        for (const source of sources) target.merge(source);
      } else {
        const bitmap = bitmaps.get(name);
        if (bitmap.busy !== undefined || bitmap.inconsistent) {
          throw new JobError(`Bitmap '${name}' is ${bitmap.inconsistent ? 'inconsistent' : 'in use by a job'}`);
        }
        if (action === 'clear') bitmap.clear();
        else if (action === 'enable' || action === 'disable') bitmap.recording = action === 'enable';
        else throw new JobError(`Cannot ${action} a bitmap`);
      }
      if (image instanceof Qcow2Image) await image.touchBitmaps();
    });
    return {};
  }

  /** The role ends: jobs give up, and what they hold is closed. */
  async close(): Promise<void> {
    const jobs = [...this.#jobs.values()].map(({ job }) => job);
    for (const job of jobs) job.cancel(true);
    await Promise.all(jobs.map((job) => job.done));
  }

  async #work(type: string, id: string, disk: JobDisk, fields: Fields, pivot: { done: boolean }): Promise<JobWork> {
    if (type === 'stream') {
      const { image } = disk;
      if (!(image instanceof Qcow2Image)) throw new JobError(`Cannot stream into '${id}': only qcow2 images can`);
      const depth = depthOf(fields, 'baseDepth');
      if (depth === undefined || depth === 1) {
        // Right below: nothing is between, and nothing is to be done.
        if (depth === 1) throw new JobError(`Cannot stream into '${id}': its base is right below it`);
        return new StreamWork(disk, image);
      }
      const between = new Layers(image.backing, depth - 1);
      return new StreamWork(disk, image, { between, name: nameOf(fields) });
    }
    if (type !== 'mirror' && type !== 'backup' && type !== 'commit') throw new JobError(`Cannot start a ${type} job`);
    const bits = optionalTextField(fields, 'bitmap');
    const bitmap = bits === undefined ? undefined : { name: bits, bits: disk.bitmaps.get(bits) };
    const target = await openImage(sourceOf(fields.target), { readOnly: false });
    try {
      if (type === 'commit') return await this.#commit(disk, target, fields, pivot);
      if (target.sizeBytes !== disk.sizeBytes) {
        throw new JobError(`Cannot copy ${disk.sizeBytes} bytes to a target of ${target.sizeBytes}`);
      }
      const targetIsZero = flagField(fields, 'isNew', false);
      const sync = textField(fields, 'sync');
      if (type === 'mirror') {
        if (sync !== 'full' && sync !== 'top' && sync !== 'none') throw new JobError(`Cannot mirror with sync=${sync}`);
        return new MirrorWork(disk, target, { sync, targetIsZero }, async (before) => {
          pivot.done = true;
          await before.close();
        });
      }
      if (sync !== 'full' && sync !== 'incremental') throw new JobError(`Cannot back up with sync=${sync}`);
      return await BackupWork.begin(disk, target, id, {
        sync,
        targetIsZero,
        ...(bitmap === undefined ? {} : { bitmap }),
      });
    } catch (error) {
      await target.close();
      throw error;
    }
  }

  /** The image below is opened anew, for writing; from here on it is that object which is under the disk. */
  async #commit(disk: JobDisk, base: DiskImage, fields: Fields, pivot: { done: boolean }): Promise<JobWork> {
    const topDepth = depthOf(fields, 'topDepth') ?? 0;
    const baseDepth = depthOf(fields, 'baseDepth') ?? 1;
    const above = topDepth === 0 ? undefined : new Layers(disk.image, topDepth);
    const layers = new Layers(above === undefined ? disk.image : above.below, baseDepth - topDepth);
    const { top } = layers;
    if (base.sizeBytes < top.sizeBytes && base.resize !== undefined) await base.resize(top.sizeBytes);
    if (base.sizeBytes !== top.sizeBytes) {
      throw new JobError(`Cannot commit ${top.sizeBytes} bytes into a disk of ${base.sizeBytes}`);
    }
    const file = optionalTextField(fields, 'overlay');
    const overlayFile = file === undefined ? undefined : FdImageFile.open(file, false);
    await disk.alone(() => layers.lowest.swapBacking(base));
    if (above !== undefined) {
      const onDone = () => {
        pivot.done = true;
      };
      return new CommitWork(disk, { layers, base, overlay: above.lowest, name: nameOf(fields), overlayFile, onDone });
    }
    return new MirrorWork(disk, base, { type: 'commit', layers, sync: 'top', targetIsZero: false }, async () => {
      pivot.done = true;
      await layers.close();
    });
  }
}

/** How many images are above one: 0 is the disk's own */
function depthOf(fields: Fields, name: 'topDepth' | 'baseDepth'): number | undefined {
  return fields[name] === undefined ? undefined : numberField(fields, name, name === 'baseDepth' ? 1 : 0, MAX_CHAIN);
}

/** What the header of the image above a base says of it: text that opens nothing here */
function nameOf(fields: Fields): BackingName {
  return { file: textField(fields, 'baseFile'), format: textField(fields, 'baseFormat') };
}

/** What the supervisor opened for a job: paths that stand for its descriptors. */
function sourceOf(value: unknown): ImageSource {
  const fields = recordOf(value, 'target');
  const backing = fields.backing === undefined ? undefined : sourceOf(fields.backing);
  const format = textField(fields, 'format') as ImageSource['format'];
  const passphrase = optionalTextField(fields, 'passphrase');
  return {
    path: textField(fields, 'path'),
    format,
    ...(passphrase === undefined ? {} : { passphrase }),
    ...(backing === undefined ? {} : { backing }),
  };
}

function throttleLimits(fields: Fields): ThrottleLimits {
  const limits: { -readonly [K in keyof ThrottleLimits]: ThrottleLimits[K] } = {};
  for (const name of LIMIT_NAMES) {
    if (fields[name] !== undefined) limits[name] = rateOf(recordOf(fields[name], name));
  }
  if (fields.opBytes !== undefined) limits.opBytes = numberField(fields, 'opBytes', 0, MAX_RATE);
  return limits;
}

function rateOf(fields: Fields): ThrottleRate {
  return {
    average: numberField(fields, 'average', 0, MAX_RATE),
    ...(fields.burst === undefined ? {} : { burst: numberField(fields, 'burst', 0, MAX_RATE) }),
    ...(fields.burstSeconds === undefined ? {} : { burstSeconds: numberField(fields, 'burstSeconds', 1, 3600) }),
  };
}
