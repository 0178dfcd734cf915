import { closeSync } from 'node:fs';
import type { Duplex } from 'node:stream';
import { duplexPair } from 'node:stream';
import { socketPairs } from '../shared/stream_pair.ts';
import { type BlockJobEvent, JOB_EVENTS } from './block_control.ts';
import { ControlPlane } from './control_plane.ts';
import {
  descriptorsOf,
  imageSource,
  openBootFile,
  openDisk,
  openLogFile,
  openReplayFile,
  writeUserFile,
} from './files.ts';
import {
  printable,
  type RoleExit,
  type RoleHandle,
  type StartRole,
  startRoleEmbedded,
  startRoleProcess,
} from './role_host.ts';
import { ROLE_MODULES, type RoleName } from './role_table.ts';
import type { RunningVm, SuperviseOptions, VmEvent, VmExit, VmReport } from './running_vm.ts';
import { checkVmOptions, type FileSource, uuidOfName, type VmOptions } from './vm_options.ts';

/**
 * By role. The machine's translated code is optimised later than code of web pages, since optimising an instruction takes
 * as long as running it some ten thousand times. Its loops are not unrolled or peeled and its calls not inlined: each made
 * compiling longer and none the guest faster. Its harts ask for the collector when they have forgotten code.
 */
const NODE_FLAGS: Partial<Record<RoleName, readonly string[]>> = {
  machine: [
    '--wasm-tiering-budget=30000000',
    '--expose-gc',
    ...['--no-wasm-loop-unrolling', '--no-wasm-loop-peeling', '--no-wasm-inlining'],
  ],
};

const MONITOR_RESTARTS = 3;
const PROFILE_TIMEOUT_MS = 30_000;
const FLUSH_TIMEOUT_MS = 30_000;
const MAX_REASON_LENGTH = 2000;
/** Lines of the disk role that are kept until the guest begins; what comes behind them is told at once */
const MAX_EARLY_REPORTS = 100;
const MAX_STATUS_LENGTH = 32;

/**
 * Opens what the options name, starts one role each for machine, disks, console, migration and monitor, joins them
 * and starts the guest. Resolves when the guest runs (or waits, with `paused` or `incoming`).
 * @throws VmOptionsError, FileError, or a role's error; nothing is left running then
 */
export async function supervise(vm: VmOptions, options: SuperviseOptions = {}): Promise<RunningVm> {
  checkVmOptions(vm);
  const supervisor = new Supervisor(vm, options);
  try {
    await supervisor.start();
  } catch (error) {
    await supervisor.close();
    throw error;
  }
  return supervisor;
}

class Supervisor implements RunningVm {
  readonly options: VmOptions;
  readonly uuid: string;
  readonly exit: Promise<VmExit>;
  readonly #settings: SuperviseOptions;
  readonly #control: ControlPlane;
  readonly #roles = new Map<RoleName, RoleHandle>();
  readonly #eventHandlers: ((event: VmEvent) => void)[] = [];
  readonly #resolveExit: (exit: VmExit) => void;
  /** All roles are there; a client of the monitor may be faster than the last of them */
  readonly #started: Promise<void>;
  readonly #resolveStarted: () => void;
  #files: number[] = [];
  #outcome: VmExit = { reason: 'host', exitCode: 0 };
  #status = 'prelaunch';
  #ending: Promise<void> | undefined;
  #exiting = false;
  #resetByHost = false;
  #monitorRestarts = 0;
  /** What the disk role says until the guest begins; undefined from then on */
  #earlyReports: VmReport[] | undefined = [];
  /** Why the disks could not be opened */
  #diskFailure: Error | undefined;

  constructor(vm: VmOptions, settings: SuperviseOptions) {
    this.options = vm;
    this.uuid = vm.uuid?.toLowerCase() ?? uuidOfName(vm.name);
    this.#settings = settings;
    const { promise, resolve } = Promise.withResolvers<VmExit>();
    this.exit = promise;
    this.#resolveExit = resolve;
    const started = Promise.withResolvers<void>();
    this.#started = started.promise;
    this.#resolveStarted = started.resolve;
    this.#control = new ControlPlane(
      vm,
      () => ({
        machine: this.#rpc('machine'),
        disk: this.#roles.get('disk')?.rpc,
        console: this.#roles.get('console')?.rpc,
        migration: this.#roles.get('migration')?.rpc,
      }),
      () => void this.#shutdown({ reason: 'host', exitCode: 0 }, 'host-qmp-quit'),
    );
  }

  get serial(): Duplex {
    return this.#roles.get('machine')!.own.serial!;
  }

  get pids(): Partial<Record<RoleName, number>> {
    return Object.fromEntries([...this.#roles].flatMap(([role, { pid }]) => (pid === undefined ? [] : [[role, pid]])));
  }

  onEvent(handler: (event: VmEvent) => void): void {
    this.#eventHandlers.push(handler);
  }

  async call(method: string, params?: unknown): Promise<unknown> {
    if (method === 'reset') this.#resetByHost = true;
    const result = await this.#control.call(method, params);
    if (method === 'powerdown') setImmediate(() => this.#emit('POWERDOWN', {})); // after the answer, as QEMU
    return result;
  }

  async start(): Promise<void> {
    const { options: vm } = this;
    // A file that cannot be written is told now, not when the samples are lost
    if (vm.profile !== undefined) writeUserFile(vm.profile, new Uint8Array(0));
    const embedded = vm.isolation === 'embedded';
    if (embedded) {
      this.#report('Roles run embedded in this process: they are NOT isolated from each other or from this program');
    }
    const names = ['ram', ...(vm.display ? ['display'] : []), ...vm.disks.map(({ id }) => `disk:${id}`)];
    const pairs = embedded ? names.map(() => duplexPair()) : await socketPairs(names.length);
    const links = new Map(names.map((name, index) => [name, pairs[index]! as [Duplex, Duplex]]));
    const ram = links.get('ram')![1];
    try {
      try {
        await this.#startRoles(links);
      } finally {
        if (!embedded) {
          // The roles have their own copies; what was not handed over ends here.
          for (const pair of links.values()) for (const stream of pair) if (stream !== ram) stream.destroy();
          for (const fd of this.#files) closeSync(fd);
        }
        this.#files = [];
      }
      // A guest that comes from elsewhere comes through the migration role; any other guest need not wait for it.
      if (vm.incoming !== undefined) await this.#startMigration(ram);
      await this.#begin();
      if (vm.incoming === undefined) await this.#startMigration(ram);
    } finally {
      if (!embedded) ram.destroy();
    }
    this.#resolveStarted();
  }

  #startMigration(ram: Duplex): Promise<void> {
    return this.#startRole('migration', { ram }, [], () => ({}));
  }

  /** Console and disk first: when the guest starts, all its devices have something behind them. */
  async #startRoles(links: ReadonlyMap<string, [Duplex, Duplex]>): Promise<void> {
    const { options: vm } = this;
    const far = (name: string) => ({ [name]: links.get(name)![1] });
    const starts: Promise<unknown>[] = [];
    if (vm.disks.length > 0) {
      // The disk role connects to disks behind NBD by itself: only it can do so again.
      const opened = await Promise.all(
        vm.disks.map(async (disk) => {
          if (disk.nbd !== undefined) return undefined;
          const files = await openDisk(disk);
          for (const fd of descriptorsOf(files)) this.#keep(fd);
          return files;
        }),
      );
      const fds = opened.flatMap((files) => (files === undefined ? [] : descriptorsOf(files)));
      const diskLinks = vm.disks.map(({ id }) => far(`disk:${id}`));
      starts.push(
        this.#startRole('disk', Object.assign({}, ...diskLinks), fds, (mapFd) => ({
          images: vm.disks.map((disk, index) => ({
            id: disk.id,
            ...(disk.nbd === undefined
              ? imageSource(disk, opened[index]!, mapFd)
              : { nbd: disk.nbd, format: disk.format }),
            readOnly: disk.readOnly,
            ...(disk.throttle === undefined ? {} : { throttle: disk.throttle }),
            // The source of a migration still holds the image; `take-disks` comes when it has let go
            inactive: vm.incoming !== undefined,
          })),
        })),
      );
    }
    if (vm.display) starts.push(this.#startRole('console', far('display'), [], () => ({ name: vm.name })));
    starts.push(this.#startMachine(links));
    if (vm.qmp.length > 0) starts.push(this.#startMonitor());
    // All settle before the first failure is told: no role may start behind the back of close().
    for (const result of await Promise.allSettled(starts)) if (result.status === 'rejected') throw result.reason;
    if (vm.qmp.length > 0) await this.#listenMonitor();
  }

  async #startMachine(links: ReadonlyMap<string, [Duplex, Duplex]>): Promise<void> {
    const { options: vm } = this;
    const fds: number[] = [];
    const openFile = async (what: string, source: FileSource | undefined): Promise<number | undefined> => {
      if (source === undefined) return undefined;
      const fd = this.#keep(await openBootFile(what, source));
      fds.push(fd);
      return fd;
    };
    const bios = typeof vm.bios === 'string' ? vm.bios : await openFile('-bios', vm.bios);
    const kernel = await openFile('-kernel', vm.kernel);
    const initrd = await openFile('-initrd', vm.initrd);
    const dtb = await openFile('-dtb', vm.dtb);
    const symbols: number[] = [];
    for (const file of vm.symbols ?? []) symbols.push((await openFile('-symbols', { file }))!);
    const logFile = vm.log?.file === undefined ? undefined : this.#keep(openLogFile(vm.log.file));
    if (logFile !== undefined) fds.push(logFile);
    const { rr, ...icount } = vm.icount ?? {};
    const rrFile = rr && this.#keep(rr.mode === 'record' ? openLogFile(rr.file) : openReplayFile(rr.file));
    if (rrFile !== undefined) fds.push(rrFile);
    const near = Object.fromEntries([...links].map(([name, [stream]]) => [name, stream]));
    await this.#startRole('machine', { serial: 'own', ...near }, fds, (mapFd) => ({
      name: vm.name,
      uuid: this.uuid,
      ramBytes: vm.ramBytes,
      harts: vm.harts,
      ...(vm.engine === undefined ? {} : { engine: vm.engine }),
      bios: typeof bios === 'number' ? { fd: mapFd(bios) } : bios,
      ...(kernel === undefined ? {} : { kernel: { fd: mapFd(kernel) } }),
      ...(initrd === undefined ? {} : { initrd: { fd: mapFd(initrd) } }),
      ...(dtb === undefined ? {} : { dtb: { fd: mapFd(dtb) } }),
      ...(vm.append === undefined ? {} : { append: vm.append }),
      disks: vm.disks.map(({ id, bus }) => ({ id, bus, link: `disk:${id}` })),
      display: vm.display,
      network: vm.network,
      virtioConsole: vm.virtioConsole === true,
      incoming: vm.incoming !== undefined,
      paused: vm.paused,
      ...(vm.log === undefined
        ? {}
        : {
            log: {
              items: vm.log.items,
              ...(logFile === undefined ? {} : { file: { fd: mapFd(logFile) } }),
            },
          }),
      ...(vm.icount === undefined
        ? {}
        : { icount: { ...icount, ...(rrFile === undefined ? {} : { rr: rr!.mode, file: { fd: mapFd(rrFile) } }) } }),
      ...(vm.profile === undefined ? {} : { profile: true }),
      ...(symbols.length === 0 ? {} : { symbols: symbols.map((fd) => ({ fd: mapFd(fd) })) }),
    }));
    const { rpc } = this.#roles.get('machine')!;
    rpc.on('status', (data) => this.#onStatus(data));
    rpc.on('shutdown', (data) => this.#onShutdown(data));
    rpc.on('reset', (data) => this.#onReset(data));
    rpc.on('replay-end', (data) => this.#onReplayEnd(data));
    // The disks belong to one end of a migration at a time; the machine says when.
    rpc.handle('flush-disks', () => this.#eachDisk('flush'));
    rpc.handle('release-disks', () => this.#eachDisk('disk-inactivate'));
    rpc.handle('take-disks', () => this.#eachDisk('disk-activate'));
  }

  async #eachDisk(method: 'flush' | 'disk-inactivate' | 'disk-activate'): Promise<void> {
    for (const { id } of this.options.disks) await this.#rpc('disk').call(method, { disk: id });
  }

  async #startMonitor(): Promise<void> {
    const { options: vm } = this;
    await this.#startRole('monitor', {}, [], () => ({ name: vm.name, uuid: this.uuid, paths: vm.qmp }));
    const { rpc } = this.#roles.get('monitor')!;
    for (const method of this.#control.methods) {
      rpc.handle(method, async (params) => {
        await this.#started;
        return this.call(method, params);
      });
    }
  }

  /** Clients may come from now on: all that they can ask is there. */
  async #listenMonitor(): Promise<void> {
    await this.#rpc('monitor').call('listen', {});
  }

  async #startRole(
    role: RoleName,
    links: StartRole['links'],
    fds: readonly number[],
    makeOptions: StartRole['options'],
  ): Promise<void> {
    const start = this.options.isolation === 'embedded' ? startRoleEmbedded : startRoleProcess;
    const handle = await start({
      role,
      module: this.#settings.roleModules?.[role] ?? ROLE_MODULES[role],
      links,
      fds,
      options: makeOptions,
      nodeFlags: [...(NODE_FLAGS[role] ?? []), ...(this.#settings.nodeFlags?.[role] ?? [])],
      onText: (text) => this.#tell({ kind: 'text', role, text }),
    });
    if (this.#ending !== undefined) {
      // A monitor that was started again while all roles were being ended
      await handle.close();
      throw new Error(`Cannot start the ${role}: the machine ends`);
    }
    this.#roles.set(role, handle);
    if (role === 'disk') {
      // It tells before it ends, so that the reason is here before the machine sees its link close.
      handle.rpc.handle('open-failed', (data) => {
        const { text } = (data ?? {}) as { readonly text?: unknown };
        if (typeof text === 'string') this.#diskFailure = new Error(printable(text.slice(0, MAX_REASON_LENGTH)));
        return {};
      });
      for (const event of JOB_EVENTS) handle.rpc.on(event, (data) => this.#onJob(event, data));
    }
    if (role === 'migration') {
      handle.rpc.on('MIGRATION', (data) => this.#onMigration('MIGRATION', 'status', data));
      handle.rpc.on('MIGRATION_PASS', (data) => this.#onMigration('MIGRATION_PASS', 'pass', data));
    }
    void handle.exited.then((exit) => this.#onRoleEnd(handle, exit));
  }

  async #begin(): Promise<void> {
    const { options: vm } = this;
    // A machine that cannot be built says so here, also when it is not to start yet.
    try {
      await this.#control.call('query-status');
    } catch (error) {
      // All that the machine sees of a disk that cannot be opened is that its link has closed. Why has been told before
      // that, but on another link, which a busy event loop may read later: within two turns.
      for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
      throw this.#diskFailure ?? error;
    } finally {
      // Where the error tells it, nobody needs to hear of the role's end, too.
      if (this.#diskFailure === undefined)
        for (const report of this.#earlyReports ?? []) this.#settings.onReport?.(report);
      this.#earlyReports = this.#diskFailure === undefined ? undefined : [];
    }
    if (vm.vnc !== undefined) await this.#openConsole(vm.vnc);
    if (vm.incoming !== undefined) {
      if (vm.incoming !== 'defer') await this.#waitForMigration(vm.incoming);
    } else if (!vm.paused) {
      await this.#rpc('machine').call('start', {});
    }
  }

  async #waitForMigration(uri: string): Promise<void> {
    const answer = (await this.#control.call('migrate-incoming', { uri })) as { uri?: unknown } | null;
    if (typeof answer?.uri === 'string') this.#report(`Waiting for a migration on ${answer.uri}`);
  }

  async #openConsole(vnc: NonNullable<VmOptions['vnc']>): Promise<void> {
    if (vnc.port !== undefined)
      await this.#rpc('console').call('listen', { transport: 'rfb', host: vnc.host, port: vnc.port });
    if (vnc.webPort !== undefined) await this.#control.call('console');
  }

  #rpc(role: RoleName) {
    const handle = this.#roles.get(role);
    if (handle === undefined) throw new Error(`Cannot reach the ${role}: it has ended`);
    return handle.rpc;
  }

  #onStatus(data: unknown): void {
    const status = takeText(data, 'status');
    const before = this.#status;
    this.#status = status;
    if (status === 'internal-error' && this.options.icount?.rr?.mode === 'replay') {
      void this.#shutdown({ reason: 'failure', exitCode: 1, text: 'The replay has failed' }, 'host-qmp-quit');
      return;
    }
    if (status === 'running' && before !== 'running') this.#emit('RESUME', {});
    // A migration's pause is a stop for clients too; an ended guest is told by SHUTDOWN.
    if (before === 'running' && (status === 'paused' || status === 'postmigrate' || status === 'finish-migrate')) {
      this.#emit('STOP', {});
    }
  }

  #onShutdown(data: unknown): void {
    const reason = takeText(data, 'reason');
    const given = (data as { exitCode?: unknown }).exitCode;
    const exitCode = typeof given === 'number' && Number.isInteger(given) && given >= 0 ? Math.min(given, 255) : 1;
    if (reason === 'host') {
      void this.#shutdown({ reason, exitCode }, 'host-qmp-quit');
      return;
    }
    const panic = reason === 'guest-panic';
    void this.#shutdown({ reason: panic ? reason : 'guest-shutdown', exitCode }, panic ? reason : 'guest-shutdown');
  }

  #onReset(data: unknown): void {
    const byHost = takeText(data, 'reason') === 'host' && this.#resetByHost;
    this.#resetByHost = false;
    const reason = byHost ? 'host-qmp-system-reset' : 'guest-reset';
    if (this.options.noReboot && !byHost) {
      void this.#shutdown({ reason: 'guest-reset', exitCode: 0 }, reason);
      return;
    }
    this.#emit('RESET', { guest: !byHost, reason });
  }

  #onReplayEnd(data: unknown): void {
    const { matches, instructions, guestEnded } = (data ?? {}) as Record<string, unknown>;
    const count = typeof instructions === 'number' ? instructions.toLocaleString('en-US') : 'some';
    const same = matches === true;
    this.#report(
      same
        ? `Replay    ${count} instructions, and the state is the recorded one`
        : `Cannot replay: after ${count} instructions the state is not the recorded one`,
    );
    const exit: VmExit = same
      ? { reason: 'host', exitCode: 0 }
      : { reason: 'failure', exitCode: 1, text: 'The replay went another way' };
    // A guest that ended itself tells with what
    if (!same || guestEnded !== true) void this.#shutdown(exit, 'host-qmp-quit');
  }

  #onJob(event: BlockJobEvent, data: unknown): void {
    const checked = this.#control.blocks.onEvent(event, data);
    if (checked !== undefined) this.#emit(event, checked);
  }

  #onMigration(event: 'MIGRATION' | 'MIGRATION_PASS', field: 'status' | 'pass', data: unknown): void {
    const value = (data as Record<string, unknown> | null)?.[field];
    if (field === 'status') this.#emit(event, { status: takeText(data, field) });
    else if (typeof value === 'number') this.#emit(event, { pass: value });
  }

  async #shutdown(exit: VmExit, cause: string): Promise<void> {
    if (this.#exiting) return;
    const byHost = cause.startsWith('host');
    if (this.options.noShutdown && !byHost) {
      this.#emit('SHUTDOWN', { guest: true, reason: cause });
      return;
    }
    this.#exiting = true;
    this.#outcome = exit;
    this.#emit('SHUTDOWN', { guest: !byHost, reason: cause });
    await this.close();
  }

  #onRoleEnd(handle: RoleHandle, exit: RoleExit): void {
    const { role } = exit;
    if (this.#roles.get(role) === handle) this.#roles.delete(role);
    handle.rpc.close();
    if (this.#exiting || this.#ending !== undefined) return;
    const how = exit.signal === undefined ? `exit code ${exit.code ?? 'none'}` : `signal ${exit.signal}`;
    const restart = role === 'monitor' && ++this.#monitorRestarts <= MONITOR_RESTARTS;
    const after = restart ? 'it is started again' : AFTER_END[role];
    const text = `The ${role} role ended unexpectedly (${how}): ${after}`;
    this.#tell({ kind: 'role-ended', exit, text });
    if (role === 'machine') {
      this.#exiting = true;
      this.#outcome = { reason: 'failure', exitCode: 1, text };
      void this.close();
    } else if (restart) {
      const again = async () => {
        await this.#startMonitor();
        await this.#listenMonitor();
      };
      again().catch((error: Error) => {
        if (this.#ending === undefined) this.#report(error.message);
      });
    }
  }

  close(): Promise<void> {
    this.#ending ??= this.#closeRoles();
    return this.#ending;
  }

  async #closeRoles(): Promise<void> {
    const { disk, machine, ...others } = Object.fromEntries(this.#roles) as Partial<Record<RoleName, RoleHandle>>;
    if (machine !== undefined) await this.#writeProfile(machine);
    // The guest stops first; then what it wrote reaches its disks; then nobody is left to listen to the rest.
    await machine?.close();
    if (disk !== undefined && this.#diskFailure === undefined) {
      try {
        await disk.rpc.call('flush', {}, { timeoutMs: FLUSH_TIMEOUT_MS });
      } catch (error) {
        this.#report(`Cannot flush the disks: ${(error as Error).message}`);
      }
      await disk.close();
    }
    await Promise.all(Object.values(others).map((handle) => handle.close()));
    this.#control.blocks.close();
    this.#resolveExit(this.#outcome);
  }

  async #writeProfile(machine: RoleHandle): Promise<void> {
    const { profile: path, name } = this.options;
    if (path === undefined) return;
    try {
      const { profileFile, readProfileAnswer } = await import('../profile/mod.ts');
      const answer = await machine.rpc.call('profile', {}, { timeoutMs: PROFILE_TIMEOUT_MS });
      writeUserFile(path, profileFile(path, name, readProfileAnswer(answer)));
      this.#report(`Profile   ${path}`);
    } catch (error) {
      this.#report(`Cannot write the profile: ${(error as Error).message}`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #keep(fd: number): number {
    this.#files.push(fd);
    return fd;
  }

  #emit(event: VmEvent['event'], data: VmEvent['data']): void {
    this.#roles.get('monitor')?.rpc.emit('event', { event, data });
    for (const handler of this.#eventHandlers) handler({ event, data });
  }

  #tell(report: VmReport): void {
    const role = report.kind === 'text' ? report.role : report.exit.role;
    const kept = this.#earlyReports;
    if (role !== 'disk' || kept === undefined || kept.length >= MAX_EARLY_REPORTS) this.#settings.onReport?.(report);
    else if (this.#diskFailure === undefined) kept.push(report);
  }

  #report(text: string): void {
    this.#settings.onReport?.({ kind: 'text', role: 'supervisor', text });
  }
}

const AFTER_END: Readonly<Record<RoleName, string>> = {
  machine: 'the guest is gone',
  disk: 'the guest gets errors from its disks',
  console: 'the screen can no longer be seen, the guest runs on',
  migration: 'this machine can no longer be migrated, the guest runs on',
  monitor: 'it ended too often, the guest runs on without a monitor',
};

/** The machine may be taken over by its guest: only short text goes on. */
function takeText(data: unknown, field: string): string {
  const value = (data as Record<string, unknown> | null)?.[field];
  if (typeof value !== 'string' || value.length > MAX_STATUS_LENGTH)
    throw new Error(`Cannot use an event: no ${field}`);
  return value;
}
