import { closeSync } from 'node:fs';
import process from 'node:process';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../emulator/devices/backends.ts';
import type { Engine } from '../../emulator/hart/hart.ts';
import { Machine } from '../../emulator/machine/machine.ts';
import type { DiskOptions, MachineOptions } from '../../emulator/machine/machine_api.ts';
import { isLogItem } from '../../emulator/trace/log_items.ts';
import { encodeFolded } from '../../protocols/folded/mod.ts';
import type { NbdClient } from '../nbd/client.ts';
import { Channel } from '../shared/channel.ts';
import type { RoleLinks, Rpc } from '../shared/role.ts';
import { RpcPeer } from '../shared/rpc.ts';
import { awaitMigration, type RunGuard } from './await_migration.ts';
import { BootDescriptor, readDescriptor } from './boot_descriptor.ts';
import { attachDisplay } from './display_link.ts';
import type { HartThreads } from './hart_threads.ts';
import { logTarget } from './log_sink.ts';
import { nodePlatform } from './node_platform.ts';
import { openReplay } from './replay_file.ts';
import { joinSerial, type SerialLink } from './serial_link.ts';

/** A file that the supervisor opened for us */
export interface InheritedFile {
  readonly fd: number;
}

/** Made by the supervisor; see {@link MachineOptions} for what the fields mean. */
export interface MachineRoleOptions {
  readonly name: string;
  readonly uuid: string;
  readonly ramBytes: number;
  readonly harts: number;
  readonly engine?: Engine;
  readonly bios: 'builtin' | 'none' | InheritedFile;
  readonly kernel?: InheritedFile;
  readonly initrd?: InheritedFile;
  readonly dtb?: InheritedFile;
  readonly append?: string;
  readonly disks: readonly { readonly id: string; readonly bus: DiskOptions['bus']; readonly link: string }[];
  readonly display: boolean;
  readonly network: boolean;
  /** The terminal is the virtio console, not the serial port */
  readonly virtioConsole?: boolean;
  /** Waits for a migration instead of starting */
  readonly incoming: boolean;
  readonly paused: boolean;
  /** `-d`; to a file, or to standard error */
  readonly log?: { readonly items: readonly string[]; readonly file?: InheritedFile };
  readonly symbols?: readonly InheritedFile[];
  readonly icount?: {
    readonly shift: number | 'auto';
    readonly sleep: boolean;
    readonly rr?: 'record' | 'replay';
    readonly file?: InheritedFile;
  };
  /** Take samples, for `profile` */
  readonly profile?: boolean;
}

/** How long a terminal may take for what the guest wrote last, in `ms` */
const LAST_WORDS_MS = 1000;
/**
 * A virtio console waits so long for a terminal that takes nothing, in `ms`; then what the guest writes is lost. Not for
 * ever, as the serial port does: Linux spins on it with interrupts off, and QEMU does not wait at all.
 */
const CONSOLE_PATIENCE_MS = 4000;
/** Disk requests in flight at once; more wait in their queues */
const DISK_REQUESTS = 64;

/** The machine role after its threads: see role.ts. */
export async function runMachine(links: RoleLinks, options: MachineRoleOptions, threads: HartThreads): Promise<void> {
  const { promise: ended, resolve: end } = Promise.withResolvers<void>();
  let parts: { machine: Machine; clients: readonly NbdClient[] } | undefined;
  let failure: unknown;
  try {
    parts = await build(links, options, threads);
  } catch (error) {
    failure = error;
  }
  // Requests wait in the link until now, so that none finds a machine that is half built
  const rpc = new RpcPeer(links.control, { name: 'supervisor' });
  rpc.onClose(() => end());
  rpc.handle('quit', () => {
    end();
    return {};
  });
  let serial: SerialLink | undefined;
  if (parts === undefined) {
    for (const method of ['start', 'cont', 'query-status']) {
      rpc.handle(method, () => {
        throw failure;
      });
    }
  } else {
    serial = joinTerminal(links.serial, parts.machine);
    const migration = connectLinks(links, parts.machine, rpc);
    serveControl(rpc, parts.machine, options, migration);
    if (options.incoming) parts.machine.awaitMigration();
  }
  await ended;
  await parts?.machine.close();
  // The guest's last words: the process ends when they have left, or nobody takes them
  await Promise.race([serial?.end(), sleep(LAST_WORDS_MS)]);
  for (const client of parts?.clients ?? []) client.close();
  // Until now a reset would have read them again
  for (const file of [options.bios, options.kernel, options.initrd]) {
    if (typeof file === 'object') closeSync(file.fd);
  }
}

async function build(
  links: RoleLinks,
  options: MachineRoleOptions,
  threads: HartThreads,
): Promise<{ machine: Machine; clients: readonly NbdClient[] }> {
  const disks = await openDisks(links, options);
  const icount = options.icount === undefined ? {} : { icount: await import('../../emulator/icount/mod.ts') };
  const machine = Machine.create(
    machineOptions(
      options,
      disks.map(({ disk }) => disk),
    ),
    {
      ...nodePlatform({
        threads,
        onProblem: (text) => process.stderr.write(`${text}\n`),
        ...(options.log === undefined ? {} : { log: logTarget(options.log.file?.fd) }),
      }),
      ...icount,
    },
  );
  return { machine, clients: disks.map(({ client }) => client) };
}

function machineOptions(options: MachineRoleOptions, disks: DiskOptions[]): MachineOptions {
  const file = (what: string, given: InheritedFile | undefined): BootDescriptor | undefined =>
    given === undefined ? undefined : new BootDescriptor(given.fd, what);
  const optional = {
    kernel: file('kernel', options.kernel),
    initrd: file('initrd', options.initrd),
    dtb: options.dtb === undefined ? undefined : readDescriptor(options.dtb.fd, 'device tree'),
    append: options.append,
  };
  return {
    ramBytes: options.ramBytes,
    harts: options.harts,
    ...(options.engine === undefined ? {} : { engine: options.engine }),
    bios: typeof options.bios === 'string' ? options.bios : new BootDescriptor(options.bios.fd, 'firmware'),
    ...(Object.fromEntries(
      Object.entries(optional).filter(([, value]) => value !== undefined),
    ) as Partial<MachineOptions>),
    disks,
    display: options.display,
    network: options.network,
    virtioConsole: options.virtioConsole === true,
    ...(options.log === undefined ? {} : { log: options.log.items.filter(isLogItem) }),
    ...(options.icount === undefined ? {} : { icount: countedOptions(options.icount) }),
    ...(options.profile === true ? { profile: true } : {}),
    ...(options.symbols === undefined
      ? {}
      : { symbols: options.symbols.map(({ fd }) => readDescriptor(fd, 'symbols')) }),
    name: options.name,
    uuid: options.uuid,
  };
}

function countedOptions(given: NonNullable<MachineRoleOptions['icount']>): NonNullable<MachineOptions['icount']> {
  const { shift, sleep, rr, file } = given;
  return { shift, sleep, ...(rr === undefined || file === undefined ? {} : { file: openReplay(rr, file.fd) }) };
}

/** Each disk is an NBD session with the disk role, over a socketpair. */
async function openDisks(
  links: RoleLinks,
  options: MachineRoleOptions,
): Promise<{ disk: DiskOptions; client: NbdClient }[]> {
  if (options.disks.length === 0) return [];
  const [{ NbdClient }, { NbdBlockBackend }, { borrowingSocket }] = await Promise.all([
    import('../nbd/client.ts'),
    import('../nbd/block_backend.ts'),
    import('../nbd/borrowing_socket.ts'),
  ]);
  return Promise.all(
    options.disks.map(async ({ id, bus, link }) => {
      const stream = links[link];
      if (stream === undefined)
        throw new BlockError('EINVAL', `Cannot open disk ${id}: no link ${link} was handed over`);
      const client = await NbdClient.connect(borrowingSocket(stream), {
        exportName: id,
        requests: DISK_REQUESTS,
      });
      return { disk: { id, bus, backend: new NbdBlockBackend(client) }, client };
    }),
  );
}

function joinTerminal(link: Duplex | undefined, machine: Machine): SerialLink | undefined {
  if (link === undefined) return undefined;
  const { virtioConsole, serial } = machine;
  return virtioConsole === undefined
    ? joinSerial(link, serial)
    : joinSerial(link, virtioConsole, { patienceMs: CONSOLE_PATIENCE_MS });
}

/** Gives what serves migrations, which knows when the guest must not run here. */
function connectLinks(links: RoleLinks, machine: Machine, rpc: Rpc): RunGuard | undefined {
  if (links.display !== undefined && machine.display !== undefined) {
    attachDisplay(new Channel(links.display, { name: 'display' }), machine.display, machine.keyboard, machine.tablet);
  }
  if (links.ram === undefined) return undefined;
  return awaitMigration(links.ram, machine, {
    flushDisks: async () => void (await rpc.call('flush-disks')),
    releaseDisks: async () => void (await rpc.call('release-disks')),
    takeDisks: async () => void (await rpc.call('take-disks')),
    log: (text) => process.stderr.write(`${text}\n`),
  });
}

/** The request cannot be done in the machine's state; the monitor passes it on. */
class ControlRefusal extends Error {
  readonly code = 'ERR_MACHINE_STATE';
}

function serveControl(rpc: Rpc, machine: Machine, options: MachineRoleOptions, migration: RunGuard | undefined): void {
  /** Never two runners of one guest, whatever the monitor is told */
  const mayRun = (what: string): void => {
    const reason = migration?.blocksRun();
    if (reason !== undefined) throw new ControlRefusal(`Cannot ${what} the guest: ${reason}`);
  };
  machine.events.subscribe((event) => {
    const { kind, ...data } = event;
    rpc.emit(kind, data);
  });
  rpc.handle('start', () => {
    mayRun('start');
    machine.start();
    return {};
  });
  rpc.handle('stop', async () => {
    await machine.pause();
    return {};
  });
  rpc.handle('cont', () => {
    mayRun('resume');
    if (machine.status === 'prelaunch') machine.start();
    else machine.resume();
    return {};
  });
  rpc.handle('reset', () => {
    mayRun('reset');
    machine.reset();
    return {};
  });
  rpc.handle('powerdown', () => {
    machine.powerdown();
    return {};
  });
  rpc.handle('query-status', () => ({ status: machine.status, running: machine.status === 'running' }));
  rpc.handle('query-cpus', () =>
    Array.from({ length: options.harts }, (_, hart) => ({ 'cpu-index': hart, halted: machine.hartIdle(hart) })),
  );
  rpc.handle('query-stats', () =>
    machine.counters().map((counters, hart) => ({
      'cpu-index': hart,
      stats: [...counters].map(([name, value]) => ({ name, value: Number(value) })),
    })),
  );
  rpc.handle('profile', () => {
    const profile = machine.profile();
    if (profile === undefined) throw new ControlRefusal('Cannot give a profile: none is made');
    const { stacks, ...numbers } = profile;
    return { folded: encodeFolded(stacks), ...numbers };
  });
  rpc.handle('query-block', () => options.disks.map(({ id, bus }) => ({ id, bus })));
}
