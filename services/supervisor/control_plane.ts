import { isAbsolute } from 'node:path';
import type { Rpc } from '../shared/role.ts';
import { FileError, writeUserFile } from './files.ts';
import type { DiskSource, VmOptions } from './vm_options.ts';

/** A request of the monitor, the command or the library that cannot be carried out. */
export class ControlError extends Error {
  override readonly name = 'ControlError';
  readonly code: 'ERR_CONTROL_METHOD' | 'ERR_CONTROL_PARAMETER' | 'ERR_CONTROL_STATE' | 'ERR_CONTROL_ABSENT';
  constructor(code: ControlError['code'], text: string) {
    super(text);
    this.code = code;
  }
}

export interface ControlRoles {
  readonly machine: Rpc;
  readonly disk: Rpc | undefined;
  readonly console: Rpc | undefined;
  readonly migration: Rpc | undefined;
}

type Handler = (params: Fields) => unknown | Promise<unknown>;

/** A stop waits for all harts and for disk requests in flight, in `ms` */
const PAUSE_TIMEOUT_MS = 60_000;
const MAX_TEXT_LENGTH = 4096;

/**
 * What can be asked of a running machine: fixed methods with plain parameters, for the monitor role (which may be
 * taken over by its client), the command and the library. Each is checked here and goes on to one role.
 */
export class ControlPlane {
  readonly #options: VmOptions;
  readonly #roles: () => ControlRoles;
  readonly #quit: () => void;
  readonly #handlers: ReadonlyMap<string, Handler>;
  readonly #exports = new Map<string, { readonly disk: string; readonly name: string }>();
  #consoleUrl: string | undefined;

  constructor(options: VmOptions, roles: () => ControlRoles, quit: () => void) {
    this.#options = options;
    this.#roles = roles;
    this.#quit = quit;
    this.#handlers = new Map<string, Handler>([
      ['query-status', () => this.#machine('query-status')],
      ['query-cpus', () => this.#machine('query-cpus')],
      ['query-stats', () => this.#machine('query-stats')],
      ['stop', () => this.#machine('stop', PAUSE_TIMEOUT_MS)],
      ['cont', () => this.#machine('cont', PAUSE_TIMEOUT_MS)],
      ['reset', () => this.#machine('reset', PAUSE_TIMEOUT_MS)],
      ['powerdown', () => this.#machine('powerdown')],
      ['quit', () => this.#scheduleQuit()],
      ['query-block', () => this.#queryBlock()],
      ['nbd-server-start', (params) => this.#disk().call('nbd-server-start', { listen: takeAddress(params) })],
      ['nbd-server-add', (params) => this.#addExport(params)],
      ['nbd-server-remove', (params) => this.#removeExport(params)],
      ['nbd-server-stop', () => this.#stopNbd()],
      ['query-exports', () => [...this.#exports].map(([id, { disk }]) => ({ id, disk }))],
      ['console', () => this.#console()],
      ['query-vnc', () => this.#roles().console?.call('query-vnc') ?? { enabled: false }],
      ['screendump', (params) => this.#screendump(params)],
      ['migrate', (params) => this.#migration().call('migrate', { uri: params.text('uri') })],
      ['migrate-incoming', (params) => this.#incoming(params.text('uri'))],
      ['migrate-cancel', () => this.#migration().call('migrate-cancel')],
      ['migrate-reclaim', () => this.#migration().call('migrate-reclaim')],
      ['migrate-set-parameters', (params) => this.#migration().call('migrate-set-parameters', params.plain())],
      ['query-migrate', () => this.#migration().call('query-migrate')],
      ['query-migrate-parameters', () => this.#migration().call('query-migrate-parameters')],
    ]);
  }

  get methods(): readonly string[] {
    return [...this.#handlers.keys()];
  }

  /** @throws ControlError, or the role's own error with its `code` */
  async call(method: string, params?: unknown): Promise<unknown> {
    const handler = this.#handlers.get(method);
    if (handler === undefined) throw new ControlError('ERR_CONTROL_METHOD', `Cannot run ${method}: unknown method`);
    return handler(new Fields(method, params));
  }

  #machine(method: string, timeoutMs?: number): Promise<unknown> {
    return this.#roles().machine.call(method, {}, timeoutMs === undefined ? {} : { timeoutMs });
  }

  #disk(): Rpc {
    const { disk } = this.#roles();
    if (disk === undefined) throw absent('disk', 'it has no disks');
    return disk;
  }

  #migration(): Rpc {
    const { migration } = this.#roles();
    if (migration === undefined) throw absent('migration', 'its migration role has ended');
    return migration;
  }

  #scheduleQuit(): object {
    // The answer goes out first.
    setTimeout(this.#quit, 20);
    return {};
  }

  /** The machine knows which device a disk is, the disk role how big it is, the options where it comes from. */
  async #queryBlock(): Promise<unknown> {
    const { machine, disk } = this.#roles();
    const devices = asList(await machine.call('query-block', {}));
    const sizes = disk === undefined ? [] : asList(await disk.call('query-disks', {}));
    return this.#options.disks.map((source) => ({
      ...describeDisk(source),
      device: devices.find((entry) => entry.id === source.id) ?? {},
      image: sizes.find((entry) => entry.id === source.id) ?? {},
    }));
  }

  async #addExport(params: Fields): Promise<unknown> {
    const disk = params.text('device');
    if (!this.#options.disks.some(({ id }) => id === disk)) {
      throw new ControlError('ERR_CONTROL_PARAMETER', `Cannot find device='${disk}' nor node-name='${disk}'`);
    }
    const name = params.optionalText('name') ?? disk;
    const id = params.optionalText('id') ?? name;
    if (this.#exports.has(id))
      throw new ControlError('ERR_CONTROL_PARAMETER', `Block export id '${id}' is already in use`);
    const result = await this.#disk().call('nbd-server-add', {
      disk,
      name,
      writable: params.flag('writable'),
    });
    this.#exports.set(id, { disk, name });
    return result;
  }

  async #removeExport(params: Fields): Promise<unknown> {
    const id = params.text('id');
    const known = this.#exports.get(id);
    if (known === undefined) throw new ControlError('ERR_CONTROL_PARAMETER', `Export '${id}' is not found`);
    const result = await this.#disk().call('nbd-server-remove', {
      name: known.name,
      mode: params.optionalText('mode'),
    });
    this.#exports.delete(id);
    return result;
  }

  async #stopNbd(): Promise<unknown> {
    const result = await this.#disk().call('nbd-server-stop', {});
    this.#exports.clear();
    return result;
  }

  /** The page's address; the listener is opened by the first who asks. */
  async #console(): Promise<unknown> {
    const { console } = this.#roles();
    if (console === undefined) throw absent('console', 'it has no display');
    if (this.#consoleUrl === undefined) {
      const { vnc } = this.#options;
      const remote = vnc !== undefined && !isLoopback(vnc.host);
      const answer = (await console.call('listen', {
        transport: 'web',
        host: vnc?.host ?? '127.0.0.1',
        port: vnc?.webPort ?? 0,
        ...(remote ? { allowRemote: true } : {}),
      })) as { url?: unknown } | null;
      if (typeof answer?.url !== 'string') throw absent('console', 'it gave no address');
      this.#consoleUrl = answer.url;
    }
    return { url: this.#consoleUrl, port: Number(new URL(this.#consoleUrl).port) };
  }

  /** `{path, format}`: the console role gives the picture, only the supervisor touches files. */
  async #screendump(params: Fields): Promise<unknown> {
    const { console } = this.#roles();
    if (console === undefined) throw absent('console', 'there is no console to take a screendump from');
    const path = params.text('path');
    if (!isAbsolute(path)) throw new FileError(`Cannot write ${path}: expected an absolute path`);
    const bytes = await console.call('screendump', { format: params.optionalText('format') ?? 'ppm' });
    if (!(bytes instanceof Uint8Array)) throw absent('console', 'it gave no picture');
    writeUserFile(path, bytes);
    return {};
  }

  async #incoming(uri: string): Promise<unknown> {
    if (this.#options.incoming === undefined) {
      throw new ControlError('ERR_CONTROL_STATE', "'-incoming' was not specified on the command line");
    }
    return this.#migration().call('migrate-incoming', { uri });
  }
}

/** Parameters of one call, read field by field. */
class Fields {
  readonly #method: string;
  readonly #fields: ReadonlyMap<string, unknown>;

  constructor(method: string, params: unknown) {
    this.#method = method;
    if (params === undefined || params === null) this.#fields = new Map();
    else if (typeof params === 'object' && !Array.isArray(params)) this.#fields = new Map(Object.entries(params));
    else throw this.#refuse('parameters', 'expected a map');
  }

  optionalText(name: string): string | undefined {
    const value = this.#fields.get(name);
    if (value === undefined || value === null) return undefined;
    if (typeof value !== 'string' || value.length > MAX_TEXT_LENGTH || value.includes('\0')) {
      throw this.#refuse(name, `expected text of at most ${MAX_TEXT_LENGTH} characters`);
    }
    return value;
  }
  text(name: string): string {
    const value = this.optionalText(name);
    if (value === undefined || value === '') throw this.#refuse(name, 'missing');
    return value;
  }
  flag(name: string): boolean {
    const value = this.#fields.get(name) ?? false;
    if (typeof value !== 'boolean') throw this.#refuse(name, 'expected true or false');
    return value;
  }
  port(name: string): number {
    const value = this.#fields.get(name);
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > 65_535) {
      throw this.#refuse(name, 'expected 0..65535');
    }
    return value;
  }
  plain(): Record<string, unknown> {
    return Object.fromEntries(this.#fields);
  }

  #refuse(name: string, found: string): ControlError {
    return new ControlError('ERR_CONTROL_PARAMETER', `Cannot run ${this.#method} with ${name}: ${found}`);
  }
}

/** `{path}` or `{host, port}`; without TLS only this host is a place to listen. */
function takeAddress(params: Fields): object {
  const path = params.optionalText('path');
  if (path !== undefined) {
    if (!isAbsolute(path))
      throw new ControlError('ERR_CONTROL_PARAMETER', `Cannot listen on ${path}: expected an absolute path`);
    return { type: 'unix', path };
  }
  const host = params.text('host');
  if (!isLoopback(host)) {
    throw new ControlError(
      'ERR_CONTROL_PARAMETER',
      `Cannot listen on ${host}: not loopback, and the stream is not encrypted`,
    );
  }
  return { type: 'inet', host, port: params.port('port') };
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(?:\.[0-9]{1,3}){3}$/.test(host);
}

function describeDisk(disk: DiskSource): object {
  const { id, file, format, snapshot } = disk;
  return { id, file, format, readOnly: disk.readOnly, snapshot };
}

function asList(value: unknown): { id?: unknown }[] {
  return Array.isArray(value) ? value.filter((entry) => typeof entry === 'object' && entry !== null) : [];
}

function absent(what: string, found: string): ControlError {
  return new ControlError('ERR_CONTROL_ABSENT', `Cannot use the ${what} of this machine: ${found}`);
}
