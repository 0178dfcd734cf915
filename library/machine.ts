import { setTimeout as sleep } from 'node:timers/promises';
import {
  DEFAULT_VM_OPTIONS,
  type RunningVm,
  supervise,
  type VmEvent,
  type VmExit,
  type VmOptions,
} from '../services/supervisor/mod.ts';
import { SerialStreams } from './serial_streams.ts';

/** {@link VmOptions}, where only the name is required; the command line's options as JSON. */
export type MachineOptions = Partial<Omit<VmOptions, 'paused' | 'serial'>> & Pick<VmOptions, 'name'>;

/** What `query-migrate` of QMP says; `downtime` in `ms` */
export interface MigrationReport {
  readonly status: string;
  readonly 'total-time'?: number;
  readonly downtime?: number;
  readonly 'error-desc'?: string;
  readonly ram?: { readonly transferred: number; readonly remaining: number; readonly total: number };
}

export interface MigrateOptions {
  /** Aborting cancels the migration; the guest goes on here */
  readonly signal?: AbortSignal;
  /** Called about ten times a second */
  readonly onProgress?: (report: MigrationReport) => void;
}

/** A machine, or a migration, did not do what was asked; `code` is stable. */
export class MachineError extends Error {
  override readonly name = 'MachineError';
  readonly code: 'ERR_MACHINE_MIGRATION' | 'ERR_MACHINE_CLOSED';
  constructor(code: MachineError['code'], text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}

const POLL_MS = 100;
const FINAL = new Set(['completed', 'failed', 'cancelled']);

/**
 * A virtual machine of this program. Its roles are processes of their own, and end with it.
 *
 * ```ts
 * await using machine = await Machine.create({ name: 'one', bios: 'none', kernel: { builtin: 'firmware' } });
 * await machine.start();
 * for await (const text of machine.serial.readable.pipeThrough(new TextDecoderStream())) …
 * ```
 */
export class Machine implements AsyncDisposable {
  readonly #vm: RunningVm;
  /**
   * The guest's serial port, as Web streams of bytes. The guest waits for who reads; while nobody has asked for
   * `readable`, it does not, and only the first 64 KiB are kept.
   */
  readonly serial: { readonly readable: ReadableStream<Uint8Array>; readonly writable: WritableStream<Uint8Array> };

  private constructor(vm: RunningVm) {
    this.#vm = vm;
    this.serial = new SerialStreams(vm.serial);
  }

  /**
   * Builds a machine that stands still until {@link start}; with `incoming` it waits for a migration.
   * @throws VmOptionsError, FileError; a role's error, with its `code`
   */
  static async create(options: MachineOptions): Promise<Machine> {
    return new Machine(await supervise({ ...DEFAULT_VM_OPTIONS, ...options, paused: true, serial: 'none' }));
  }

  get name(): string {
    return this.#vm.options.name;
  }
  /** Settles when the guest or the machine has ended; never rejects */
  get exit(): Promise<VmExit> {
    return this.#vm.exit;
  }

  async start(): Promise<void> {
    await this.#vm.call('cont');
  }
  /** The guest stands still; `resume` goes on. */
  async pause(): Promise<void> {
    await this.#vm.call('stop');
  }
  async resume(): Promise<void> {
    await this.#vm.call('cont');
  }
  async reset(): Promise<void> {
    await this.#vm.call('reset');
  }
  async status(): Promise<string> {
    const { status } = (await this.#vm.call('query-status')) as { status: string };
    return status;
  }
  onEvent(handler: (event: VmEvent) => void): void {
    this.#vm.onEvent(handler);
  }

  /**
   * Moves the guest to a machine that waits at `uri` (`tcp:HOST:PORT` or `unix:PATH`). Resolves when it runs there.
   * @throws MachineError where it did not; the guest runs on here then
   */
  async migrate(uri: string, options: MigrateOptions = {}): Promise<MigrationReport> {
    options.signal?.throwIfAborted();
    await this.#vm.call('migrate', { uri });
    let cancelled = false;
    for (;;) {
      const report = (await this.#vm.call('query-migrate')) as MigrationReport;
      options.onProgress?.(report);
      if (report.status === 'completed') return report;
      if (FINAL.has(report.status)) {
        const why = report['error-desc'] ?? report.status;
        throw new MachineError('ERR_MACHINE_MIGRATION', `Cannot migrate ${this.name} to ${uri}: ${why}`, {
          cause: cancelled ? options.signal?.reason : undefined,
        });
      }
      if (options.signal?.aborted === true && !cancelled) {
        cancelled = true;
        await this.#vm.call('migrate-cancel');
      }
      await sleep(POLL_MS);
    }
  }

  /** The page with the guest's screen; the listener is opened by the first call. */
  async console(): Promise<URL> {
    const { url } = (await this.#vm.call('console')) as { url: string };
    return new URL(url);
  }

  /** Exports a disk over NBD on a UNIX socket, read-only; gives the URI that nbdcopy and qemu-img take. */
  async exportDisk(id: string, socketPath: string): Promise<string> {
    await this.#vm.call('nbd-server-start', { path: socketPath });
    const { uri } = (await this.#vm.call('nbd-server-add', { device: id })) as { uri: string };
    return uri;
  }

  /** Switches the machine off, whatever the guest does, and ends all its processes; `exit` says how it ended. */
  async stop(): Promise<VmExit> {
    await this.#vm.close();
    return this.exit;
  }
  /** The same, for `await using`. */
  async close(): Promise<void> {
    await this.#vm.close();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
