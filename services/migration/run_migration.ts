import type { Duplex } from 'node:stream';
import type { Observable } from 'rxjs';
import type { Rpc } from '../shared/role.ts';
import { connectMigration, listenMigration, type MigrationListener } from './connection.ts';
import { type DestinationLimits, MigrationDestination } from './destination.ts';
import { MachineClient } from './machine_client.ts';
import { MigrationError } from './migration_error.ts';
import { DEFAULT_PARAMETERS, type MigrationParameters, mergeParameters } from './parameters.ts';
import { type MigrationProgress, type MigrationStatus, NO_PROGRESS, toQueryMigrate } from './progress.ts';
import { MigrationSource } from './source.ts';
import { formatMigrationUri, parseMigrationUri } from './uri.ts';

export interface MigrationRoleOptions {
  readonly parameters?: Partial<MigrationParameters>;
  readonly limits?: Partial<DestinationLimits>;
}

/**
 * Serves `migrate`, `migrate-incoming`, `migrate-cancel`, `query-migrate`, `migrate-set-parameters`,
 * `query-migrate-parameters` and `migrate-reclaim`; tells `MIGRATION {status}` and `MIGRATION_PASS {pass}`.
 * Resolves when the control link is closed and nothing runs any more.
 */
export function runMigrationRole(rpc: Rpc, ram: Duplex, options: MigrationRoleOptions = {}): Promise<void> {
  return new MigrationRole(rpc, ram, options).closed;
}

class MigrationRole {
  readonly closed: Promise<void>;
  readonly #rpc: Rpc;
  readonly #machine: MachineClient;
  readonly #limits: Partial<DestinationLimits>;
  #parameters: MigrationParameters;
  #source: MigrationSource | undefined;
  #destination: MigrationDestination | undefined;
  #listener: MigrationListener | undefined;
  #listening = false;
  #running: Promise<unknown> = Promise.resolve();
  #last: MigrationProgress = NO_PROGRESS;
  #ended = false;

  constructor(rpc: Rpc, ram: Duplex, options: MigrationRoleOptions) {
    this.#rpc = rpc;
    this.#machine = new MachineClient(ram);
    this.#limits = options.limits ?? {};
    this.#parameters = mergeParameters(DEFAULT_PARAMETERS, options.parameters);
    rpc.handle('migrate', (params) => this.#migrate(params));
    rpc.handle('migrate-incoming', (params) => this.#incoming(params));
    rpc.handle('migrate-cancel', () => this.#cancel());
    rpc.handle('query-migrate', () => toQueryMigrate(this.#last));
    rpc.handle('migrate-set-parameters', (params) => this.#setParameters(params));
    rpc.handle('query-migrate-parameters', () => ({ ...this.#parameters }));
    rpc.handle('migrate-reclaim', () => this.#reclaim());
    this.#machine.onClose(() => this.#end());
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    rpc.onClose(() => {
      this.#end();
      void this.#running.finally(() => {
        this.#machine.close();
        resolve();
      });
    });
  }

  /** `{uri, parameters?}`: begins; how it goes is told by events and `query-migrate`. */
  #migrate(params: unknown): object {
    const { uri, parameters } = takeMap(params, 'migrate', ['uri', 'parameters']);
    this.#checkIdle();
    const merged = mergeParameters(this.#parameters, parameters);
    const address = parseMigrationUri(uri, { allowPlaintext: merged['allow-plaintext'] });
    const source = new MigrationSource({
      machine: this.#machine,
      parameters: merged,
      connect: (signal) => connectMigration(address, signal),
    });
    this.#source = source;
    this.#follow(source.progress);
    this.#running = source.run().finally(() => {
      this.#source = undefined;
    });
    return {};
  }

  /** `{uri}` → `{uri}` with the real port: waits for a source, one after the other until one has moved in. */
  async #incoming(params: unknown): Promise<object> {
    const { uri } = takeMap(params, 'migrate-incoming', ['uri']);
    this.#checkIdle();
    const address = parseMigrationUri(uri, { allowPlaintext: this.#parameters['allow-plaintext'] });
    this.#listening = true;
    try {
      const listener = await listenMigration(address, (socket) => this.#accept(socket));
      this.#listener = listener;
      if (this.#ended) await this.#stopListening();
      return { uri: formatMigrationUri(listener.address) };
    } catch (error) {
      this.#listening = false;
      throw error;
    }
  }

  #accept(stream: Duplex): boolean {
    if (this.#destination !== undefined || !this.#listening || this.#ended) return false;
    const destination = new MigrationDestination({ machine: this.#machine, stream, limits: this.#limits });
    this.#destination = destination;
    this.#follow(destination.progress);
    this.#running = destination.run().then(async (progress) => {
      this.#destination = undefined;
      if (progress.status === 'completed') await this.#stopListening();
    });
    return true;
  }

  /** Nothing to cancel is no error, as in QEMU. */
  async #cancel(): Promise<object> {
    this.#source?.cancel();
    const stopped = this.#stopListening();
    this.#destination?.cancel();
    await stopped;
    return {};
  }

  #setParameters(params: unknown): object {
    this.#parameters = mergeParameters(this.#parameters, params);
    this.#source?.setBandwidth(this.#parameters['max-bandwidth']);
    return {};
  }

  /** The operator says that the destination does not run the guest: it runs on here. */
  async #reclaim(): Promise<object> {
    if (!this.#outcomeIsOpen && this.#last.error?.code !== 'ERR_MIGRATION_MACHINE') {
      throw new MigrationError(
        'ERR_MIGRATION_STATE',
        'Cannot reclaim the guest: no migration ended with an open outcome',
      );
    }
    await this.#machine.untrack();
    this.#last = { ...this.#last, error: { code: 'ERR_MIGRATION_ABORTED', message: 'Reclaimed by the operator' } };
    return {};
  }

  /** The guest was handed over and no answer came */
  get #outcomeIsOpen(): boolean {
    return this.#source === undefined && this.#last.error?.code === 'ERR_MIGRATION_UNKNOWN_OUTCOME';
  }

  #checkIdle(): void {
    if (this.#ended) throw new MigrationError('ERR_MIGRATION_STATE', 'Cannot migrate: the role ends');
    if (this.#outcomeIsOpen) {
      throw new MigrationError(
        'ERR_MIGRATION_STATE',
        'Cannot start a migration: the outcome of the last is open; see migrate-reclaim',
      );
    }
    if (this.#source !== undefined || this.#destination !== undefined || this.#listening) {
      throw new MigrationError('ERR_MIGRATION_BUSY', 'Cannot start a migration: one is under way');
    }
  }

  async #stopListening(): Promise<void> {
    const listener = this.#listener;
    this.#listener = undefined;
    this.#listening = false;
    await listener?.close();
  }

  #follow(progress: Observable<MigrationProgress>): void {
    let status: MigrationStatus = 'none';
    let pass = 0;
    progress.subscribe((now) => {
      this.#last = now;
      if (now.round !== pass) {
        pass = now.round;
        this.#rpc.emit('MIGRATION_PASS', { pass });
      }
      if (now.status !== status) {
        status = now.status;
        this.#rpc.emit('MIGRATION', { status });
      }
    });
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    try {
      this.#source?.cancel();
    } catch {
      // The guest was handed over; nothing to cancel
    }
    this.#destination?.cancel();
    void this.#stopListening();
  }
}

function takeMap(params: unknown, method: string, fields: readonly string[]): Record<string, unknown> {
  if (typeof params !== 'object' || params === null || Array.isArray(params)) {
    throw new MigrationError('ERR_MIGRATION_PARAMETER', `Cannot run ${method}: expected a map`);
  }
  const extra = Object.keys(params).find((field) => !fields.includes(field));
  if (extra !== undefined) {
    throw new MigrationError('ERR_MIGRATION_PARAMETER', `Cannot run ${method}: ${extra.slice(0, 64)} is unknown`);
  }
  return params as Record<string, unknown>;
}
