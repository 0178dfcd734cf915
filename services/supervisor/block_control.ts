import { closeSync, constants, ftruncateSync, rmSync, writeSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import process from 'node:process';
import { IMAGE_FORMATS, type ImageFormat } from '../nbd/images/image_format.ts';
import type { Rpc } from '../shared/role.ts';
import { readSecret } from '../shared/secret.ts';
import { chainOf, depthOf, type LayerName, withoutLayers } from './backing_chain.ts';
import { ControlError, type Fields } from './fields.ts';
import { FileError, openTarget } from './files.ts';
import type { DiskFile, DiskSource } from './vm_options.ts';

const JOB_TYPES = ['mirror', 'backup', 'commit', 'stream'] as const;
export const JOB_EVENTS = ['BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED'] as const;
export type BlockJobEvent = (typeof JOB_EVENTS)[number];
const MAX_NODES = 64;
const MAX_TEXT = 1024;

interface JobRequest {
  readonly job: string;
  readonly disk: string;
  readonly type: string;
  readonly speed: number;
}

interface Node {
  readonly file: DiskFile;
  readonly fd: number;
}

/** What a job leaves the disk on when it has moved it */
interface Move {
  readonly disk: string;
  readonly to: DiskFile;
}

/**
 * Jobs, limits and bitmaps of disks. The supervisor opens or creates the files that a job writes to; the disk role
 * gets them as names of our descriptors, `/proc/PID/fd/N`, and reopens these: it sees no path, and what was checked is
 * what it uses.
 */
export class BlockControl {
  readonly handlers: readonly (readonly [string, (params: Fields) => unknown])[];
  readonly #disk: () => Rpc;
  readonly #files: Map<string, DiskFile>;
  readonly #nodes = new Map<string, Node>();
  readonly #moves = new Map<string, Move>();

  constructor(disks: readonly DiskSource[], disk: () => Rpc) {
    this.#disk = disk;
    this.#files = new Map(disks.map((source) => [source.id, source]));
    this.handlers = [
      ['block-job-start', (params) => this.#start(params)],
      ['block-job-control', (params) => this.#disk().call('job-control', params.plain())],
      ['query-block-jobs', () => this.#disk().call('query-jobs', {})],
      ['blockdev-add', (params) => this.#addNode(params)],
      ['blockdev-del', (params) => this.#removeNode(params.text('node'))],
      ['block-throttle', (params) => this.#forward('disk-throttle', params)],
      ['block-bitmap', (params) => this.#forward('bitmap', params)],
    ];
  }

  /** Where a disk is now: a job may have moved it. */
  fileOf(disk: string): DiskFile {
    return this.#files.get(disk)!;
  }

  /** An event of the disk role, checked; undefined where it makes no sense. */
  onEvent(event: BlockJobEvent, data: unknown): Record<string, string | number> | undefined {
    const fields = (typeof data === 'object' && data !== null ? data : {}) as Readonly<Record<string, unknown>>;
    const { type, device, error } = fields;
    if (typeof device !== 'string' || device.length > MAX_TEXT || !JOB_TYPES.some((known) => known === type)) {
      return undefined;
    }
    if (event !== 'BLOCK_JOB_READY') {
      const move = this.#moves.get(device);
      this.#moves.delete(device);
      const moved =
        fields.pivoted === true || (type === 'stream' && event === 'BLOCK_JOB_COMPLETED' && error === undefined);
      if (moved && move !== undefined) this.#files.set(move.disk, move.to);
    }
    const count = (name: string): number => (Number.isSafeInteger(fields[name]) ? (fields[name] as number) : 0);
    return {
      type: type as string,
      device,
      len: count('len'),
      offset: count('offset'),
      speed: count('speed'),
      ...(typeof error === 'string' && event === 'BLOCK_JOB_COMPLETED' ? { error: error.slice(0, MAX_TEXT) } : {}),
    };
  }

  close(): void {
    for (const { fd } of this.#nodes.values()) closeSync(fd);
    this.#nodes.clear();
  }

  async #start(params: Fields): Promise<unknown> {
    const device = this.#device(params);
    const job = params.optionalText('job') ?? device;
    const type = JOB_TYPES.find((known) => known === params.text('type'));
    if (type === undefined) throw refuse('type', 'unknown kind of job');
    const speed = params.optionalNumber('speed') ?? 0;
    const request = { job, disk: device, type, speed };
    const now = this.#files.get(device)!;
    if (type === 'stream') return this.#stream(params, request, chainOf(now));
    if (type === 'commit') return this.#commit(params, request, chainOf(now));
    const sync = params.text('sync');
    const bitmap = params.optionalText('bitmap');
    const more = { ...request, sync, ...(bitmap === undefined ? {} : { bitmap }) };
    const node = params.optionalText('node');
    if (node !== undefined) {
      const known = this.#nodes.get(node);
      if (known === undefined) throw new ControlError('ERR_CONTROL_PARAMETER', `Cannot find node-name='${node}'`);
      const target = { path: descriptorPath(known.fd), format: known.file.format };
      return this.#run(job, { ...more, target }, { disk: device, to: known.file });
    }
    const path = params.text('target');
    const format = formatOf(params.text('format'));
    const isNew = (params.optionalText('mode') ?? 'absolute-paths') === 'absolute-paths';
    const fd = isNew ? await this.#create(device, path, format) : openTarget(absolute(path), constants.O_RDWR);
    try {
      const target = { path: descriptorPath(fd), format };
      return await this.#run(job, { ...more, isNew, target }, { disk: device, to: { file: path, format } });
    } catch (error) {
      if (isNew) rmSync(path, { force: true });
      throw error;
    } finally {
      closeSync(fd);
    }
  }

  /** Without `base`, all that is below; with it what is above that. */
  #stream(params: Fields, request: JobRequest, chain: readonly DiskFile[]): Promise<unknown> {
    const base = depthOf(chain, 'base', named(params, 'base'));
    if (base === 0) throw refuse('base', 'it is the disk itself');
    if (base === 1) throw refuse('base', 'it is right below the disk, and nothing is between');
    const name = base === undefined ? {} : { baseDepth: base, ...baseName(chain[base]!, params) };
    const to = withoutLayers(chain, 1, base ?? chain.length);
    return this.#run(request.job, { ...request, ...name }, { disk: request.disk, to });
  }

  /** Without `top` from the disk's own image, without `base` into the lowest. */
  async #commit(params: Fields, request: JobRequest, chain: readonly DiskFile[]): Promise<unknown> {
    const { job, disk } = request;
    if (chain.length < 2) throw new ControlError('ERR_CONTROL_STATE', `Disk '${disk}' has no image below it`);
    const top = depthOf(chain, 'top', named(params, 'top')) ?? 0;
    const base = depthOf(chain, 'base', named(params, 'base')) ?? chain.length - 1;
    if (top === base) throw refuse('base', 'cannot commit an image into itself');
    if (top > base) throw refuse('base', `it is above ${chain[top]!.file}`);
    if (top === 0 && params.optionalText('backing-file') !== undefined) {
      throw refuse('backing-file', 'the disk itself is committed, and no image stays above the base');
    }
    const opened: number[] = [];
    try {
      const target = this.#openLayers(chain[base]!, opened, false);
      // The image above is open read-only, unless it is the disk's own, and its header has to change.
      const overlay = top < 2 ? {} : { overlay: this.#reopen(chain[top - 1]!, opened) };
      const depths = { topDepth: top, baseDepth: base, ...baseName(chain[base]!, params) };
      const to = withoutLayers(chain, top, base);
      return await this.#run(job, { ...request, ...depths, ...overlay, target }, { disk, to });
    } finally {
      for (const fd of opened) closeSync(fd);
    }
  }

  #reopen({ file }: DiskFile, opened: number[]): string {
    const fd = openTarget(file, constants.O_RDWR);
    opened.push(fd);
    return descriptorPath(fd);
  }

  async #run(job: string, request: object, move: Move): Promise<unknown> {
    if (this.#moves.has(job)) throw new ControlError('ERR_CONTROL_PARAMETER', `Job ID '${job}' already in use`);
    this.#moves.set(job, move);
    try {
      return await this.#disk().call('job-start', request);
    } catch (error) {
      this.#moves.delete(job);
      throw error;
    }
  }

  /** An empty image as large as the disk, in a file that was not there before. */
  async #create(device: string, path: string, format: ImageFormat): Promise<number> {
    const disks = (await this.#disk().call('query-disks', {})) as { id?: unknown; sizeBytes?: unknown }[];
    const sizeBytes = disks.find(({ id }) => id === device)?.sizeBytes;
    if (typeof sizeBytes !== 'number' || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
      throw new ControlError('ERR_CONTROL_ABSENT', `Cannot learn the size of disk '${device}'`);
    }
    // Only here: no machine's start waits for what few of them ask for
    const { emptyImage } = await import('../nbd/images/qcow2/create.ts');
    const fd = openTarget(absolute(path), constants.O_RDWR | constants.O_CREAT | constants.O_EXCL);
    try {
      if (format === 'qcow2') writeSync(fd, emptyImage({ sizeBytes }));
      else if (format === 'raw') ftruncateSync(fd, sizeBytes);
      else throw refuse('format', `expected raw or qcow2 for a new image, found ${format}`);
      return fd;
    } catch (error) {
      closeSync(fd);
      rmSync(path, { force: true });
      throw error;
    }
  }

  #openLayers(layer: DiskFile, opened: number[], readOnly: boolean): object {
    const fd = openTarget(layer.file, readOnly ? constants.O_RDONLY : constants.O_RDWR);
    opened.push(fd);
    const backing = layer.backing === undefined ? {} : { backing: this.#openLayers(layer.backing, opened, true) };
    const passphrase = layer.secret === undefined ? {} : { passphrase: readSecret(layer.secret) };
    return { path: descriptorPath(fd), format: layer.format, ...passphrase, ...backing };
  }

  #addNode(params: Fields): object {
    const name = params.text('node');
    if (this.#nodes.has(name) || this.#files.has(name)) {
      throw new ControlError('ERR_CONTROL_PARAMETER', `Duplicate nodes with node-name='${name}'`);
    }
    if (this.#nodes.size >= MAX_NODES) throw refuse('node', `more than ${MAX_NODES}`);
    const format = formatOf(params.text('format'));
    const path = absolute(params.text('path'));
    this.#nodes.set(name, { file: { file: path, format }, fd: openTarget(path, constants.O_RDWR) });
    return {};
  }

  #removeNode(name: string): object {
    const node = this.#nodes.get(name);
    if (node === undefined)
      throw new ControlError('ERR_CONTROL_PARAMETER', `Failed to find node with node-name='${name}'`);
    closeSync(node.fd);
    this.#nodes.delete(name);
    return {};
  }

  #forward(method: string, params: Fields): Promise<unknown> {
    const { device, ...rest } = params.plain();
    return this.#disk().call(method, { ...rest, disk: this.#device(params) });
  }

  #device(params: Fields): string {
    const device = params.text('device');
    if (!this.#files.has(device)) {
      throw new ControlError('ERR_CONTROL_PARAMETER', `Cannot find device='${device}' nor node-name='${device}'`);
    }
    return device;
  }
}

/** `top` and `top-node`, `base` and `base-node` */
function named(params: Fields, what: 'top' | 'base'): LayerName {
  return { file: params.optionalText(what), node: params.optionalText(`${what}-node`) };
}

/** What the header of the image above the base will say: the base's name, or what was given as `backing-file` */
function baseName({ file, format }: DiskFile, params: Fields): { baseFile: string; baseFormat: string } {
  return { baseFile: params.optionalText('backing-file') ?? file, baseFormat: format };
}

/** A descriptor of ours as another process of this user names it. */
function descriptorPath(fd: number): string {
  if (process.platform !== 'linux') throw new FileError('Cannot hand over a file to a running role: this needs Linux');
  return `/proc/${process.pid}/fd/${fd}`;
}

function absolute(path: string): string {
  if (!isAbsolute(path)) throw new FileError(`Cannot open ${path}: expected an absolute path`);
  return path;
}

function formatOf(name: string): ImageFormat {
  const format = IMAGE_FORMATS.find((known) => known === name);
  if (format === undefined) throw refuse('format', `expected ${IMAGE_FORMATS.join(' or ')}`);
  return format;
}

function refuse(name: string, found: string): ControlError {
  return new ControlError('ERR_CONTROL_PARAMETER', `Cannot start a block job with ${name}: ${found}`);
}
