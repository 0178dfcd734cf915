// Roles for tests of the supervisor: they answer what the real ones answer and show what they were given.
import { closeSync, fstatSync, readFileSync } from 'node:fs';
import type { Duplex } from 'node:stream';
import { Channel } from '../../../services/shared/channel.ts';
import type { RoleMain } from '../../../services/shared/role.ts';
import { RpcPeer } from '../../../services/shared/rpc.ts';
import type { RoleModule } from '../../../services/supervisor/mod.ts';

function fake(exportName: string): RoleModule {
  return { url: import.meta.url, exportName };
}
export const FAKE_ROLES: Readonly<Record<'machine' | 'disk' | 'console' | 'migration', RoleModule>> = {
  machine: fake('fakeMachine'),
  disk: fake('fakeDisk'),
  console: fake('fakeConsole'),
  migration: fake('fakeMigration'),
};

/** In place of the disk role */
export const HOSTILE_DISK = fake('hostileDisk');

/** Gives a reason for its end that is long and would do things to a terminal. */
export const hostileDisk: RoleMain<unknown> = async (links) => {
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  await control.call('open-failed', { text: `Cannot \u001b[31mopen${'x'.repeat(100_000)}` });
  throw Object.assign(new Error('ended'), { code: 'ERR_ENDED' });
};

interface MachineOptions {
  readonly name: string;
  readonly bios: unknown;
  readonly kernel?: { readonly fd: number };
  readonly disks: readonly { readonly id: string; readonly link: string }[];
}

/** A link that says who is at its other end: proof that the supervisor joined the right two. */
function greet(link: Duplex | undefined, name: string): Promise<string> {
  if (link === undefined) return Promise.resolve('absent');
  const channel = new Channel(link, { name });
  return new Promise((resolve) => {
    channel.onFrame((_type, payload) => resolve(new TextDecoder().decode(payload)));
    channel.onClose(() => resolve('closed'));
    channel.send(1, new TextEncoder().encode(name));
  });
}

export const fakeMachine: RoleMain<MachineOptions> = async (links, options) => {
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  let status = 'prelaunch';
  let kernel: string | undefined;
  if (options.kernel !== undefined) {
    kernel = readFileSync(options.kernel.fd).subarray(0, 64).toString('latin1');
    closeSync(options.kernel.fd);
  }
  const setStatus = (next: string) => {
    status = next;
    control.emit('status', { status });
  };
  const peers = Object.fromEntries(
    Object.entries(links)
      .filter(([name]) => name !== 'control' && name !== 'serial')
      .map(([name, link]) => [name, greet(link, `machine ${name}`)]),
  );
  control.handle('start', () => setStatus('running'));
  control.handle('stop', () => setStatus('paused'));
  control.handle('cont', () => setStatus('running'));
  control.handle('reset', () => control.emit('reset', { reason: 'host' }));
  control.handle('powerdown', () => control.emit('shutdown', { reason: 'guest-shutdown', exitCode: 0 }));
  control.handle('quit', () => control.emit('shutdown', { reason: 'host', exitCode: 0 }));
  control.handle('query-status', () => ({ status, running: status === 'running' }));
  control.handle('query-cpus', () => [{ 'cpu-index': 0, halted: false }]);
  control.handle('query-block', () => options.disks.map(({ id }) => ({ id })));
  control.handle('inspect', async () => ({
    options,
    kernel,
    environment: Object.keys(process.env),
    peers: Object.fromEntries(await Promise.all(Object.entries(peers).map(async ([name, said]) => [name, await said]))),
  }));
  // The serial port echoes; a few words make the guest do something.
  links.serial!.on('data', (chunk: Uint8Array) => {
    const text = new TextDecoder().decode(chunk).trim();
    if (text === 'exit 7') control.emit('shutdown', { reason: 'guest-shutdown', exitCode: 7 });
    else if (text === 'panic') control.emit('shutdown', { reason: 'guest-panic', exitCode: 1 });
    else if (text === 'reboot') control.emit('reset', { reason: 'guest-reset' });
    else if (text === 'crash') process.exit(42);
    else if (text === 'inspect') {
      void Promise.all(Object.entries(peers).map(async ([name, said]) => [name, await said])).then((said) =>
        links.serial!.write(
          `${JSON.stringify({ options, kernel, environment: Object.keys(process.env), peers: Object.fromEntries(said) })}\n`,
        ),
      );
    } else links.serial!.write(chunk);
  });
  await closed(control);
};

export const fakeDisk: RoleMain<{ images: { id: string; fd: number }[] }> = async (links, options) => {
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  const exports = new Set<string>();
  let listening = false;
  for (const { id } of options.images) void greet(links[`disk:${id}`], `disk ${id}`);
  control.handle('query-disks', () => options.images.map(({ id, fd }) => ({ id, sizeBytes: fstatSync(fd).size })));
  control.handle('flush', () => null);
  control.handle('disk-activate', () => null);
  control.handle('disk-inactivate', () => null);
  control.handle('nbd-server-start', () => {
    if (listening) throw Object.assign(new Error('NBD server already running'), { code: 'ERR_NBD_RUNNING' });
    listening = true;
    return { uri: 'nbd+unix:///?socket=/x' };
  });
  control.handle('nbd-server-add', (params) => {
    if (!listening) throw new Error('NBD server not running');
    exports.add((params as { name: string }).name);
    return { uri: 'nbd+unix:///disk?socket=/x' };
  });
  control.handle('nbd-server-remove', (params) => exports.delete((params as { name: string }).name));
  control.handle('nbd-server-stop', () => {
    if (!listening) throw new Error('NBD server not running');
    listening = false;
  });
  await closed(control);
};

export const fakeConsole: RoleMain<{ name: string }> = async (links) => {
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  void greet(links.display, 'console display');
  control.handle('listen', () => ({ url: 'http://127.0.0.1:5700/?token=abc', host: '127.0.0.1', port: 5700 }));
  control.handle('query-vnc', () => ({
    enabled: true,
    host: '127.0.0.1',
    service: '5700',
    family: 'ipv4',
    websocket: true,
    clients: [],
  }));
  control.handle('screendump', (params) => new TextEncoder().encode((params as { format: string }).format));
  control.handle('crash', () => process.exit(9));
  await closed(control);
};

export const fakeMigration: RoleMain<object> = async (links) => {
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  void greet(links.ram, 'migration ram');
  let parameters: Record<string, unknown> = { 'downtime-limit': 300, 'max-bandwidth': 0 };
  control.handle('migrate', () => {
    control.emit('MIGRATION', { status: 'setup' });
    control.emit('MIGRATION_PASS', { pass: 1 });
    control.emit('MIGRATION', { status: 'completed' });
    return {};
  });
  control.handle('migrate-incoming', (params) => params);
  control.handle('migrate-cancel', () => ({}));
  control.handle('query-migrate', () => ({ status: 'completed', 'total-time': 5, downtime: 2 }));
  control.handle('migrate-set-parameters', (params) => {
    parameters = { ...parameters, ...(params as object) };
    return {};
  });
  control.handle('query-migrate-parameters', () => parameters);
  await closed(control);
};

export const failsAtStart: RoleMain<object> = () => Promise.reject(new Error('Cannot start: no luck'));

function closed(control: RpcPeer): Promise<void> {
  return new Promise((resolve) => control.onClose(() => resolve()));
}
