import { once } from 'node:events';
import { mkdtemp, readdir, readFile, readlink, rm, stat, writeFile } from 'node:fs/promises';
import { enableCompileCache, getCompileCacheDir } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import {
  DEFAULT_VM_OPTIONS,
  type RunningVm,
  type SuperviseOptions,
  supervise,
  type VmEvent,
  type VmOptions,
  type VmReport,
} from '../../../services/supervisor/mod.ts';
import { FAKE_ROLES, HOSTILE_DISK } from './fake_roles.ts';

interface Running {
  readonly vm: RunningVm;
  readonly reports: VmReport[];
  readonly events: VmEvent[];
  readonly folder: string;
}

async function run(
  t: ExecutionContext,
  isolation: VmOptions['isolation'],
  options: Partial<VmOptions> = {},
  settings: SuperviseOptions = {},
): Promise<Running> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-test-'));
  await writeFile(join(folder, 'disk'), Buffer.alloc(4096, 1));
  await writeFile(join(folder, 'kernel'), 'the kernel');
  const reports: VmReport[] = [];
  const events: VmEvent[] = [];
  const vm = await supervise(
    {
      ...DEFAULT_VM_OPTIONS,
      name: 'test',
      isolation,
      kernel: { file: join(folder, 'kernel') },
      disks: [
        { id: 'hd0', file: join(folder, 'disk'), format: 'raw', readOnly: false, snapshot: false, bus: 'virtio-pci' },
      ],
      qmp: [join(folder, 'qmp.sock')],
      ...options,
    },
    { roleModules: FAKE_ROLES, onReport: (report) => reports.push(report), ...settings },
  );
  vm.onEvent((event) => events.push(event));
  t.teardown(async () => {
    await vm.close();
    await rm(folder, { recursive: true, force: true });
  });
  return { vm, reports, events, folder };
}

async function say(vm: RunningVm, text: string): Promise<string> {
  vm.serial.write(text);
  const [chunk] = (await once(vm.serial, 'data')) as [Uint8Array];
  return new TextDecoder().decode(chunk);
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

for (const isolation of ['processes', 'embedded'] as const) {
  test(`supervise() with ${isolation} joins the roles that belong together and hands over files`, async (t) => {
    const { vm } = await run(t, isolation);
    const seen = JSON.parse(await say(vm, 'inspect'));
    t.deepEqual(seen.peers, { ram: 'migration ram', display: 'console display', 'disk:hd0': 'disk hd0' });
    t.is(seen.kernel, 'the kernel');
    t.is(seen.options.name, 'test');
    t.is(seen.options.ramBytes, 128 << 20);
    t.is(seen.options.uuid, vm.uuid);
    t.regex(vm.uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    t.deepEqual(await vm.call('query-status'), { status: 'running', running: true });
  });

  test(`supervise() with ${isolation} carries the serial port both ways`, async (t) => {
    const { vm } = await run(t, isolation);
    t.is(await say(vm, 'hello'), 'hello');
  });

  test(`supervise() with ${isolation} tells stop, cont, reset and the guest's exit code`, async (t) => {
    const { vm, events } = await run(t, isolation);
    await vm.call('stop');
    await vm.call('cont');
    await vm.call('reset');
    vm.serial.write('exit 7');
    t.deepEqual(await vm.exit, { reason: 'guest-shutdown', exitCode: 7 });
    t.deepEqual(
      events.filter(({ event }) => event !== 'RESUME').map(({ event, data }) => [event, data]),
      [
        ['STOP', {}],
        ['RESET', { guest: false, reason: 'host-qmp-system-reset' }],
        ['SHUTDOWN', { guest: true, reason: 'guest-shutdown' }],
      ],
    );
  });

  test(`supervise() with ${isolation} refuses a missing kernel and leaves nothing running`, async (t) => {
    await t.throwsAsync(run(t, isolation, { kernel: { file: '/nonexistent/kernel' } }), {
      message: 'Cannot open /nonexistent/kernel as -kernel: no such file or directory (ENOENT)',
    });
  });

  test(`supervise() with ${isolation} refuses a directory as disk`, async (t) => {
    const disks = [
      { id: 'hd0', file: '/tmp', format: 'raw', readOnly: true, snapshot: false, bus: 'virtio-pci' } as const,
    ];
    await t.throwsAsync(run(t, isolation, { disks }), { message: /Cannot use \/tmp as disk hd0: a directory/ });
  });
}

for (const isolation of ['embedded', 'processes'] as const) {
  test(`supervise() with ${isolation} says why a disk could not be opened, and nothing else`, async (t) => {
    const reports: VmReport[] = [];
    const { disk: _, machine: __, ...roleModules } = FAKE_ROLES;
    const disk = { id: 'hd0', file: process.execPath, format: 'qcow2', readOnly: true, snapshot: false } as const;
    const options = {
      bios: 'none',
      kernel: { builtin: 'firmware' },
      disks: [{ ...disk, bus: 'virtio-pci' }],
      display: false,
    } as const;
    const onReport = (report: VmReport) => reports.push(report);
    const message = /^Cannot open disk hd0: Cannot accept qcow2 header magic/;
    await t.throwsAsync(run(t, isolation, options, { roleModules, onReport }), { message });
    t.deepEqual(
      reports.filter(({ text }) => !text.includes('NOT isolated')),
      [],
    );
  });
}

test('supervise() takes no more than a printable part of a reason that a disk role gives', async (t) => {
  const { machine: _, ...others } = FAKE_ROLES;
  const disk = { id: 'hd0', file: process.execPath, format: 'raw', readOnly: true, snapshot: false } as const;
  const options = {
    bios: 'none',
    kernel: { builtin: 'firmware' },
    disks: [{ ...disk, bus: 'virtio-pci' }],
    display: false,
  } as const;
  const roleModules = { ...others, disk: HOSTILE_DISK };
  const error = await t.throwsAsync(run(t, 'processes', options, { roleModules }));
  t.regex(error!.message, /^Cannot \?\[31mopenx+$/);
  t.is(error!.message.length, 2000);
});

test('supervise() says that embedded roles are not isolated', async (t) => {
  const { reports } = await run(t, 'embedded');
  t.true(reports.some((report) => /NOT isolated/.test(report.kind === 'text' ? report.text : '')));
});

test('supervise() starts one process per role and ends them all', async (t) => {
  const { vm } = await run(t, 'processes');
  const pids = Object.values(vm.pids);
  t.deepEqual(Object.keys(vm.pids).sort(), ['console', 'disk', 'machine', 'migration', 'monitor']);
  t.is(new Set([...pids, process.pid]).size, 6);
  t.true(pids.every(alive));
  await vm.close();
  t.deepEqual(pids.filter(alive), []);
  t.deepEqual(await vm.exit, { reason: 'host', exitCode: 0 });
});

test('supervise() gives roles no environment', async (t) => {
  const { vm } = await run(t, 'processes');
  t.deepEqual(JSON.parse(await say(vm, 'inspect')).environment, []);
});

test('supervise() has the compiled code of each role kept in a folder of its own', async (t) => {
  // Where the tests run without a cache, this one starts it
  enableCompileCache(await mkdtemp(join(tmpdir(), 'caisson-test-')));
  const base = dirname(getCompileCacheDir()!);
  const { vm } = await run(t, 'processes');
  await vm.close();
  for (const role of ['console', 'disk', 'machine', 'monitor']) {
    t.true((await readdir(join(base, `role-${role}`))).length > 0, role);
  }
});

test('supervise() gives a role no descriptor beyond its own', async (t) => {
  const { vm } = await run(t, 'processes');
  const fds = await readdir(`/proc/${vm.pids.migration}/fd`).catch(() => undefined);
  if (fds === undefined) return t.pass('no /proc');
  // What the role has open while it loads may be closed again by now
  const targets = await Promise.all(
    fds.map((fd) => readlink(`/proc/${vm.pids.migration}/fd/${fd}`).catch(() => 'closed')),
  );
  t.is(targets.filter((target) => target.includes('caisson-test')).length, 0);
  // standard input and error, control, ram
  t.true(targets.filter((target) => target.startsWith('socket:')).length <= 4, targets.join(' '));
});

test('supervise() reports a machine that crashes, with its exit code, and ends', async (t) => {
  const { vm, reports } = await run(t, 'processes');
  const pids = Object.values(vm.pids);
  vm.serial.write('crash');
  const exit = await vm.exit;
  t.is(exit.reason, 'failure');
  t.is(exit.exitCode, 1);
  t.is(exit.text, 'The machine role ended unexpectedly (exit code 42): the guest is gone');
  t.true(reports.some((report) => report.kind === 'role-ended' && report.exit.code === 42));
  t.deepEqual(pids.filter(alive), []);
});

for (const role of ['console', 'migration'] as const) {
  test(`supervise() keeps the guest running when the ${role} crashes`, async (t) => {
    const { vm, reports } = await run(t, 'processes');
    process.kill(vm.pids[role]!, 'SIGKILL');
    while (!reports.some((report) => report.kind === 'role-ended')) await sleep(10);
    t.regex(reports.find((report) => report.kind === 'role-ended')!.text, /signal SIGKILL.*guest runs on/);
    t.is(await say(vm, 'still here'), 'still here');
    t.is(vm.pids[role], undefined);
  });
}

test('supervise() starts a crashed monitor again', async (t) => {
  const { vm, folder } = await run(t, 'processes');
  const first = vm.pids.monitor!;
  process.kill(first, 'SIGKILL');
  for (let i = 0; i < 200 && (vm.pids.monitor === undefined || vm.pids.monitor === first); i++) await sleep(20);
  t.not(vm.pids.monitor, first);
  for (let i = 0; i < 100; i++) {
    if (
      await stat(join(folder, 'qmp.sock')).then(
        (facts) => facts.isSocket(),
        () => false,
      )
    )
      break;
    await sleep(20);
  }
  t.is(await say(vm, 'still here'), 'still here');
});

test('supervise() ends its roles when the supervisor is killed', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-test-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const script = `
    import { writeFileSync } from 'node:fs';
    import { DEFAULT_VM_OPTIONS, supervise } from ${JSON.stringify(new URL('../../../services/supervisor/mod.ts', import.meta.url).href)};
    import { FAKE_ROLES } from ${JSON.stringify(new URL('./fake_roles.ts', import.meta.url).href)};
    const vm = await supervise({ ...DEFAULT_VM_OPTIONS, name: 'x', qmp: [] }, { roleModules: FAKE_ROLES });
    process.stdout.write(JSON.stringify(vm.pids) + '\\n');
    setInterval(() => {}, 1000);`;
  const path = join(folder, 'script.mts');
  await writeFile(path, script);
  const { spawn } = await import('node:child_process');
  const child = spawn(process.execPath, [path], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const pids: number[] = Object.values(JSON.parse(String(line)));
  t.is(pids.filter(alive).length, 3);
  child.kill('SIGKILL');
  for (let i = 0; i < 100 && pids.some(alive); i++) await sleep(50);
  t.deepEqual(pids.filter(alive), []);
});

test('supervise() fails with the reason when a role cannot start', async (t) => {
  const machine = { url: new URL('./fake_roles.ts', import.meta.url).href, exportName: 'failsAtStart' };
  const reports: VmReport[] = [];
  await t.throwsAsync(
    run(t, 'processes', {}, { roleModules: { ...FAKE_ROLES, machine }, onReport: (report) => reports.push(report) }),
  );
  t.true(reports.some((report) => report.kind === 'text' && /no luck/.test(report.text)));
});

test('supervise() keeps the image as it was with snapshot', async (t) => {
  const { folder } = await run(t, 'processes');
  const file = join(folder, 'disk');
  const disks = [{ id: 'hd0', file, format: 'raw', readOnly: false, snapshot: true, bus: 'virtio-pci' } as const];
  const { vm } = await run(t, 'processes', { disks });
  const block = (await vm.call('query-block')) as { image: { sizeBytes: number } }[];
  t.is(block[0]?.image.sizeBytes, 4096);
  t.deepEqual(await readFile(file), Buffer.alloc(4096, 1));
});

test('supervise() ends the machine at a guest reset with noReboot, and waits at its end with noShutdown', async (t) => {
  const first = await run(t, 'embedded', { noReboot: true });
  first.vm.serial.write('reboot');
  t.deepEqual(await first.vm.exit, { reason: 'guest-reset', exitCode: 0 });
  const second = await run(t, 'embedded', { noShutdown: true });
  second.vm.serial.write('exit 7');
  while (!second.events.some(({ event }) => event === 'SHUTDOWN')) await sleep(5);
  await second.vm.call('quit');
  t.deepEqual(await second.vm.exit, { reason: 'host', exitCode: 0 });
});

test('powerdown is told as an event', async (t) => {
  const { vm, events } = await run(t, 'embedded', { noShutdown: true });
  await vm.call('powerdown');
  for (let i = 0; i < 100 && !events.some(({ event }) => event === 'POWERDOWN'); i++) await sleep(5);
  t.true(events.some(({ event }) => event === 'POWERDOWN'));
});

test('control refuses unknown methods, wrong parameters, far hosts and relative paths', async (t) => {
  const { vm } = await run(t, 'embedded');
  await t.throwsAsync(vm.call('nope'), { code: 'ERR_CONTROL_METHOD' });
  await t.throwsAsync(vm.call('migrate', [1]), { code: 'ERR_CONTROL_PARAMETER' });
  await t.throwsAsync(vm.call('migrate', {}), { code: 'ERR_CONTROL_PARAMETER' });
  await t.throwsAsync(vm.call('migrate-incoming', { uri: 'tcp:127.0.0.1:1' }), { code: 'ERR_CONTROL_STATE' });
  await t.throwsAsync(vm.call('nbd-server-start', { host: '0.0.0.0', port: 1 }), { message: /not loopback/ });
  await t.throwsAsync(vm.call('nbd-server-start', { path: 'relative' }), { message: /absolute/ });
  await t.throwsAsync(vm.call('nbd-server-add', { device: 'hd9' }), { message: /Cannot find device='hd9'/ });
  await t.throwsAsync(vm.call('screendump', { path: 'relative.png' }), { message: /absolute/ });
});

test('screendump writes the picture, and never through a symbolic link or into a device', async (t) => {
  const { vm, folder } = await run(t, 'processes');
  const path = join(folder, 'screen.png');
  await vm.call('screendump', { path, format: 'png' });
  t.is(await readFile(path, 'utf8'), 'png');
  const link = join(folder, 'link');
  await import('node:fs/promises').then((fs) => fs.symlink(join(folder, 'disk'), link));
  await t.throwsAsync(vm.call('screendump', { path: link }), { message: /ELOOP/ });
  await t.throwsAsync(vm.call('screendump', { path: '/dev/null' }), { message: /expected a regular file/ });
  t.is((await stat(join(folder, 'disk'))).size, 4096);
});
