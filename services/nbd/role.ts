import type { RoleLinks, RoleMain } from '../shared/role.ts';
import { RpcPeer } from '../shared/rpc.ts';
import { borrowingSocket } from './borrowing_socket.ts';
import { ExportSet } from './export_set.ts';
import {
  type DiskImage,
  IMAGE_FORMATS,
  type ImageFormat,
  type ImageSource,
  MemoryImage,
  openImage,
} from './images/mod.ts';
import { JobControl, JobDisk, Throttle, type ThrottleLimits } from './jobs/mod.ts';
import { type NbdListenAddress, NbdListener } from './listener.ts';
import { flagField, numberField, optionalTextField, recordOf, textField } from './parameters.ts';
import { openRemoteDisk } from './remote_disk.ts';
import { serveNbd } from './server.ts';

/** An export of another server, as {@link NbdReconnectOptions} has it. */
export interface DiskRoleNbd {
  readonly uri: string;
  readonly reconnectDelayMs?: number;
  readonly openTimeoutMs?: number;
  readonly connections?: number;
  readonly tls?: { readonly credentials: string; readonly user?: string; readonly hostname?: string };
}

/** One image of the disk role: exactly one of `fd`, `path`, `memoryBytes`, `nbd`. */
export interface DiskRoleImage {
  readonly id: string;
  /** Inherited descriptor; the role owns it from then on */
  readonly fd?: number;
  readonly path?: string;
  /** An empty disk in memory, in `bytes` */
  readonly memoryBytes?: number;
  readonly nbd?: DiskRoleNbd;
  /** Always explicit: what a guest has written into its disk decides nothing */
  readonly format: ImageFormat;
  /** What is under a qcow2 image that has a backing file: the name inside the image opens nothing */
  readonly backing?: ImageSource;
  /** Where a qcow2 image keeps its clusters, if that is another file */
  readonly dataFile?: ImageSource['dataFile'];
  /** Of an encrypted image */
  readonly passphrase?: string;
  readonly readOnly?: boolean;
  readonly throttle?: ThrottleLimits;
  /** Refuse an image that another writer has open (default true) */
  readonly lock?: boolean;
  /** Wait for `disk-activate` before the image is locked and written: the target of a migration */
  readonly inactive?: boolean;
}

export interface DiskRoleOptions {
  readonly images: readonly DiskRoleImage[];
}

interface Disk {
  readonly id: string;
  readonly format: ImageFormat;
  readonly image: JobDisk;
  /** The machine has its link open */
  attached: boolean;
}

class DiskRoleError extends Error {
  override readonly name = 'DiskRoleError';
  readonly code: string;
  constructor(code: string, text: string) {
    super(text);
    this.code = code;
  }
}

/**
 * The disk role: owns the images, serves each to the machine over the link `disk:<id>`, and to outside NBD clients
 * over listeners that the control link asks for. All of them see the same image object, so an outside reader sees
 * what the guest wrote. Outside exports are read-only unless asked otherwise.
 *
 * Control methods: `query-disks`, `flush {disk?}`, `disk-activate {disk}`, `disk-inactivate {disk}`,
 * `nbd-server-start {listen}` → `{uri}`, `nbd-server-add {disk, name?, writable?}` → `{uri}`,
 * `nbd-server-remove {name}`, `nbd-server-stop`, and what {@link JobControl} has.
 */
export const diskRole: RoleMain<DiskRoleOptions> = async (links, options) => {
  const role = new DiskRole();
  await role.run(links, options);
};

const TELL_MS = 1000;

/** Whoever gave several disks learns which one it is. */
function refuseToOpen(id: string, error: unknown): never {
  const code = error instanceof Error && 'code' in error ? String(error.code) : 'ERR_DISK';
  throw new DiskRoleError(code, `Cannot open disk ${id}: ${error instanceof Error ? error.message : String(error)}`);
}

class DiskRole {
  readonly #disks = new Map<string, Disk>();
  readonly #exports = new ExportSet();
  readonly #abort = new AbortController();
  #listener: NbdListener | undefined;
  #starting = false;

  async run(links: RoleLinks, options: DiskRoleOptions): Promise<void> {
    const control = new RpcPeer(links.control, { name: 'supervisor' });
    const closed = new Promise<void>((resolve) => control.onClose(() => resolve()));
    const opened = this.#open(options);
    opened.catch(() => {}); // awaited below; handlers that came first see it, too
    const handle = (method: string, run: (params: unknown) => unknown): void =>
      control.handle(method, async (params) => {
        await opened;
        return run(params);
      });
    handle('query-disks', () => this.#queryDisks());
    handle('flush', (params) => this.#flush(params));
    handle('disk-activate', async (params) => {
      await this.#diskOf(params).image.activate();
    });
    handle('disk-inactivate', async (params) => {
      const { id, image } = this.#diskOf(params);
      if (jobs.jobsOf(image).length > 0) {
        throw new DiskRoleError('ERR_DISK_BUSY', `Cannot hand over disk ${id}: a block job works on it`);
      }
      await image.inactivate();
    });
    const jobs = new JobControl(
      (id) => this.#disk(id).image,
      (event, data) => control.emit(event, data),
    );
    handle('job-start', (params) => jobs.start(params));
    handle('job-control', (params) => jobs.control(params));
    handle('query-jobs', () => jobs.query());
    handle('disk-throttle', (params) => jobs.setThrottle(params));
    handle('query-throttle', (params) => jobs.queryThrottle(params));
    handle('bitmap', (params) => jobs.bitmap(params));
    handle('nbd-server-start', (params) => this.#startServer(params));
    handle('nbd-server-add', (params) => this.#addExport(params));
    handle('nbd-server-remove', (params) => this.#removeExport(params));
    handle('nbd-server-stop', () => this.#stopServer());
    try {
      await opened.catch(async (error: Error) => {
        // The supervisor hears of it while this role is there; whoever runs the role alone does not answer.
        await control.call('open-failed', { text: error.message }, { timeoutMs: TELL_MS }).catch(() => {});
        throw error;
      });
      const sessions = this.#serveGuests(links);
      await closed;
      this.#abort.abort();
      await jobs.close();
      await this.#stopServer();
      await sessions;
    } finally {
      await this.#closeImages();
    }
  }

  async #open(options: DiskRoleOptions): Promise<void> {
    for (const wanted of options.images) {
      if (this.#disks.has(wanted.id)) {
        throw new DiskRoleError('ERR_DISK_EXISTS', `Cannot open disk ${wanted.id}: the id is in use`);
      }
      const image = new JobDisk(await openDisk(wanted).catch((error) => refuseToOpen(wanted.id, error)));
      if (wanted.throttle !== undefined) image.throttle = new Throttle(wanted.throttle);
      this.#disks.set(wanted.id, {
        id: wanted.id,
        format: wanted.format,
        image,
        attached: false,
      });
    }
  }

  /** Each guest disk over its own link, writable as the image is. No deadline: the machine may take its time. */
  async #serveGuests(links: RoleLinks): Promise<void> {
    const sessions: Promise<unknown>[] = [];
    for (const disk of this.#disks.values()) {
      const link = links[`disk:${disk.id}`];
      if (link === undefined) continue;
      const guestExport = new ExportSet();
      guestExport.add({ name: disk.id, image: disk.image, writable: true });
      const session = serveNbd(borrowingSocket(link), guestExport, {
        limits: { handshakeMs: 0, payloadMs: 0 },
        signal: this.#abort.signal,
        onTransmission: () => {
          disk.attached = true;
        },
      });
      sessions.push(
        session.then(() => {
          disk.attached = false;
        }),
      );
    }
    await Promise.all(sessions);
  }

  #queryDisks(): unknown {
    return [...this.#disks.values()].map(({ id, format, image, attached }) => ({
      id,
      format,
      sizeBytes: image.sizeBytes,
      readOnly: image.readOnly,
      attached,
    }));
  }

  async #flush(params: unknown): Promise<void> {
    const id = optionalTextField(recordOf(params ?? {}, 'flush'), 'disk');
    const disks = id === undefined ? [...this.#disks.values()] : [this.#disk(id)];
    await Promise.all(disks.map((disk) => disk.image.flush()));
  }

  async #startServer(params: unknown): Promise<{ uri: string }> {
    if (this.#listener !== undefined || this.#starting) {
      throw new DiskRoleError('ERR_NBD_RUNNING', 'Cannot start the NBD server: it runs already');
    }
    const listen = recordOf(recordOf(params, 'nbd-server-start').listen, 'listen');
    const address = addressOf(listen);
    this.#starting = true;
    try {
      this.#listener = await NbdListener.listen(address, this.#exports);
    } finally {
      this.#starting = false;
    }
    return { uri: this.#listener.uri };
  }

  #addExport(params: unknown): { uri: string } {
    const listener = this.#running('add an export');
    const record = recordOf(params, 'nbd-server-add');
    const disk = this.#disk(textField(record, 'disk'));
    const name = optionalTextField(record, 'name') ?? disk.id;
    const writable = flagField(record, 'writable', false);
    if (writable && disk.image.readOnly) {
      throw new DiskRoleError('ERR_DISK_READ_ONLY', `Cannot export disk ${disk.id} writable: it is read-only`);
    }
    const bitmap = optionalTextField(record, 'bitmap');
    if (bitmap !== undefined && !disk.image.dirtyBitmaps().includes(bitmap)) {
      throw new DiskRoleError('ERR_DISK_BITMAP', `Bitmap '${bitmap.slice(0, 64)}' is not found`);
    }
    this.#exports.add({ name, image: disk.image, writable, ...(bitmap === undefined ? {} : { bitmaps: [bitmap] }) });
    return { uri: listener.uriOf(name) };
  }

  #removeExport(params: unknown): void {
    this.#running('remove an export');
    const name = textField(recordOf(params, 'nbd-server-remove'), 'name');
    if (!this.#exports.remove(name)) {
      throw new DiskRoleError('ERR_NBD_EXPORT', `Cannot remove export ${JSON.stringify(name)}: there is none`);
    }
  }

  async #stopServer(): Promise<void> {
    const listener = this.#listener;
    this.#listener = undefined;
    this.#exports.clear();
    await listener?.close();
  }

  async #closeImages(): Promise<void> {
    for (const { image } of this.#disks.values()) {
      // The role is ending: a flush that fails was reported to whoever asked for one.
      await image.flush().catch(() => {});
      await image.close();
    }
  }

  #running(what: string): NbdListener {
    if (this.#listener === undefined) {
      throw new DiskRoleError('ERR_NBD_STOPPED', `Cannot ${what}: the NBD server is not running`);
    }
    return this.#listener;
  }

  #diskOf(params: unknown): Disk {
    return this.#disk(textField(recordOf(params, 'parameters'), 'disk'));
  }

  #disk(id: string): Disk {
    const disk = this.#disks.get(id);
    if (disk === undefined) throw new DiskRoleError('ERR_DISK_UNKNOWN', `Cannot find disk ${JSON.stringify(id)}`);
    return disk;
  }
}

async function openDisk(wanted: DiskRoleImage): Promise<DiskImage> {
  const { id, fd, path, memoryBytes, nbd, format, backing, dataFile, passphrase } = wanted;
  const sources = [fd, path, memoryBytes, nbd].filter((source) => source !== undefined).length;
  if (sources !== 1) {
    throw new DiskRoleError(
      'ERR_DISK_OPTIONS',
      `Cannot open disk ${id}: ${sources} of fd, path, memoryBytes, nbd given`,
    );
  }
  const expected = memoryBytes === undefined && nbd === undefined ? IMAGE_FORMATS : (['raw'] as const);
  if (!expected.some((known) => known === format)) {
    throw new DiskRoleError(
      'ERR_DISK_FORMAT',
      `Cannot open disk ${id}: format ${String(format)}, expected ${expected.join(' or ')}`,
    );
  }
  const readOnly = wanted.readOnly ?? false;
  if (nbd !== undefined) return openRemoteDisk(id, nbd, { readOnly, inactive: wanted.inactive ?? false });
  if (memoryBytes !== undefined) return new MemoryImage(memoryBytes, { readOnly });
  const source = {
    format,
    ...(fd === undefined ? {} : { fd }),
    ...(path === undefined ? {} : { path }),
    ...(backing === undefined ? {} : { backing }),
    ...(dataFile === undefined ? {} : { dataFile }),
    ...(passphrase === undefined ? {} : { passphrase }),
  };
  return openImage(source, { readOnly, lock: wanted.lock ?? true, inactive: wanted.inactive ?? false });
}

function addressOf(listen: Readonly<Record<string, unknown>>): NbdListenAddress {
  const type = textField(listen, 'type');
  if (type === 'unix') return { type, path: textField(listen, 'path') };
  if (type === 'inet') {
    const host = optionalTextField(listen, 'host');
    return { type, ...(host === undefined ? {} : { host }), port: numberField(listen, 'port', 0, 65535) };
  }
  throw new DiskRoleError('ERR_PARAMETER', `Cannot listen on type ${JSON.stringify(type)}: expected unix or inet`);
}
