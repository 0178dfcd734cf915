import {
  introspect,
  isQmpCommand,
  projectReturn,
  QMP_SCHEMA,
  type QmpArguments,
  type QmpCall,
  QmpError,
  type QmpReturn,
  type QmpVersion,
} from '../../protocols/qmp/mod.ts';
import type { Rpc } from '../shared/role.ts';
import { describeBlock, describeCpu, describeStatus, describeVnc } from './answers.ts';
import { describeStats, describeStatsSchemas } from './stats.ts';

/**
 * The version of QEMU whose schema ours is a subset of: clients choose by it what they may send. What we are is
 * in `package`.
 */
export const QMP_VERSION: QmpVersion = { qemu: { major: 7, minor: 2, micro: 0 }, package: 'caisson-0.1.0' };

export interface QmpIdentity {
  readonly name: string;
  readonly uuid: string;
}

/** Carries out checked commands by fixed calls to the supervisor. */
export class QmpCommands {
  readonly #supervisor: Rpc;
  readonly #identity: QmpIdentity;

  constructor(supervisor: Rpc, identity: QmpIdentity) {
    this.#supervisor = supervisor;
    this.#identity = identity;
  }

  /** @throws QmpError, or the error of the supervisor or a role */
  async run(call: QmpCall): Promise<unknown> {
    switch (call.name) {
      case 'qmp_capabilities':
        throw new QmpError('Capabilities negotiation is already complete, command ignored', 'CommandNotFound');
      case 'query-version':
        return QMP_VERSION;
      case 'query-commands':
        return Object.keys(QMP_SCHEMA.commands)
          .filter(isQmpCommand)
          .map((name) => ({ name }));
      case 'query-qmp-schema':
        return introspect();
      case 'query-name':
        return { name: this.#identity.name } satisfies QmpReturn<'query-name'>;
      case 'query-uuid':
        return { UUID: this.#identity.uuid } satisfies QmpReturn<'query-uuid'>;
      case 'query-target':
        return { arch: 'riscv64' } satisfies QmpReturn<'query-target'>;
      case 'query-kvm':
        return { enabled: false, present: false } satisfies QmpReturn<'query-kvm'>;
      case 'query-status':
        return describeStatus(await this.#call('query-status'));
      case 'query-cpus-fast':
        return asList(await this.#call('query-cpus')).map(describeCpu);
      case 'query-stats':
        return describeStats(call.arguments, await this.#call('query-stats'));
      case 'query-stats-schemas':
        return describeStatsSchemas();
      case 'stop':
        return this.#act('stop');
      case 'cont':
        return this.#act('cont');
      case 'quit':
        return this.#act('quit');
      case 'system_reset':
        return this.#act('reset');
      case 'system_powerdown':
        return this.#act('powerdown');
      case 'query-block':
        return asList(await this.#call('query-block')).map(describeBlock);
      case 'nbd-server-start':
        return this.#startNbd(call.arguments);
      case 'nbd-server-add':
        return this.#addNbd(call.arguments);
      case 'nbd-server-remove':
        return this.#act('nbd-server-remove', { id: call.arguments.name });
      case 'nbd-server-stop':
        return this.#act('nbd-server-stop');
      case 'block-export-add':
        return this.#addExport(call.arguments);
      case 'block-export-del':
        return this.#act('nbd-server-remove', { id: call.arguments.id });
      case 'query-block-exports':
        return asList(await this.#call('query-exports')).map(describeExport);
      case 'query-vnc':
        return describeVnc(await this.#call('query-vnc'));
      case '__caisson_console':
        return projectReturn(call.name, await this.#call('console'));
      case 'screendump':
        return this.#screendump(call.arguments);
      case 'migrate':
        return this.#act('migrate', { uri: call.arguments.uri });
      case 'migrate-incoming':
        return this.#act('migrate-incoming', { uri: call.arguments.uri });
      case 'migrate_cancel':
        return this.#act('migrate-cancel');
      case '__caisson_migrate-reclaim':
        return this.#act('migrate-reclaim');
      case 'migrate-set-parameters':
        return this.#act('migrate-set-parameters', { ...call.arguments });
      case 'query-migrate-parameters':
        return projectReturn(call.name, await this.#call('query-migrate-parameters'));
      case 'query-migrate':
        return projectReturn(call.name, await this.#call('query-migrate'));
    }
  }

  #call(method: string, params: object = {}): Promise<unknown> {
    return this.#supervisor.call(method, params);
  }

  /** For commands that return nothing */
  async #act(method: string, params?: object): Promise<Record<string, never>> {
    await this.#call(method, params);
    return {};
  }

  #startNbd({
    addr,
    'tls-creds': tlsCreds,
    'tls-authz': tlsAuthz,
  }: QmpArguments<'nbd-server-start'>): Promise<unknown> {
    if (tlsCreds !== undefined || tlsAuthz !== undefined) throw new QmpError('TLS is not available for this server');
    if (addr.type === 'unix') return this.#act('nbd-server-start', { path: addr.data.path });
    const port = Number(addr.data.port);
    if (!/^[0-9]{1,5}$/.test(addr.data.port) || port > 65_535) {
      throw new QmpError(`Parameter 'addr.data.port' does not accept value '${addr.data.port.slice(0, 64)}'`);
    }
    return this.#act('nbd-server-start', { host: addr.data.host, port });
  }

  #addNbd({ device, name, writable, bitmap }: QmpArguments<'nbd-server-add'>): Promise<unknown> {
    if (bitmap !== undefined) throw new QmpError(`Bitmap '${bitmap.slice(0, 64)}' is not found`);
    return this.#act('nbd-server-add', { device, name: name ?? device, writable: writable ?? false });
  }

  #addExport(options: QmpArguments<'block-export-add'>): Promise<unknown> {
    const { id, 'node-name': device, name, writable } = options;
    return this.#act('nbd-server-add', { id, device, name: name ?? device, writable: writable ?? false });
  }

  #screendump({ filename, device, head, format }: QmpArguments<'screendump'>): Promise<unknown> {
    if (device !== undefined) throw new QmpError(`Device '${device.slice(0, 64)}' not found`, 'DeviceNotFound');
    if (head !== undefined && head !== 0) throw new QmpError(`Parameter 'head' expects 0`);
    return this.#act('screendump', { path: filename, format: format ?? 'ppm' });
  }
}

function describeExport(entry: unknown): QmpReturn<'query-block-exports'>[number] {
  const { id, disk } = (entry ?? {}) as { id?: unknown; disk?: unknown };
  return { id: String(id), type: 'nbd', 'node-name': String(disk), 'shutting-down': false };
}

function asList(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}
