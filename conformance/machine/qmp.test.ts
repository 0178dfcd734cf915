import { spawnSync } from 'node:child_process';
import test, { type ExecutionContext } from 'ava';
import { introspect } from '../../protocols/qmp/mod.ts';
import type { QmpClient, QmpClientEvent } from '../../services/shared/mod.ts';
import { hasPrograms } from '../nbd/peers.ts';
import { caisson, debianOrSkip, eventually, ext4Disk, Guest, Scope, scratchFolder } from './guest.ts';

// The monitor of a machine whose guest is a Linux at work.

const scope = new Scope();
let folder = '';
let guest: Guest | undefined;
let monitor: QmpClient;
const events: QmpClientEvent[] = [];

test.before(async (t) => {
  t.timeout(10 * 60_000);
  if (!hasPrograms(t as ExecutionContext, 'mke2fs')) return;
  const debian = await debianOrSkip(t as ExecutionContext);
  if (debian === undefined) return;
  folder = scratchFolder(scope);
  const disk = await ext4Disk(folder);
  guest = Guest.start(scope, {
    folder,
    name: 'monitored',
    debian,
    args: ['-smp', '2', '-drive', `file=${disk},format=raw,id=disk`],
  });
  await guest.ready();
  monitor = await guest.qmp();
  scope.teardown(() => monitor.close());
  monitor.onEvent((event) => events.push(event));
});
test.after.always(() => scope.close());

const monitorTest = (title: string, body: (t: ExecutionContext, guest: Guest) => Promise<void>) =>
  test.serial(title, async (t) => {
    t.timeout(5 * 60_000);
    if (guest === undefined) {
      t.log('SKIPPED: there is no Debian guest');
      t.pass();
      return;
    }
    await body(t, guest);
  });

const named = (name: string) => events.filter(({ event }) => event === name);

monitorTest('query-status, query-cpus-fast, query-block, query-vnc tell of the running guest', async (t, running) => {
  t.deepEqual(await monitor.execute('query-status'), { running: true, singlestep: false, status: 'running' });
  const cpus = await monitor.execute('query-cpus-fast');
  t.deepEqual(
    cpus.map((cpu) => [cpu['cpu-index'], cpu.target]),
    [
      [0, 'riscv64'],
      [1, 'riscv64'],
    ],
  );
  const [block, ...more] = await monitor.execute('query-block');
  t.deepEqual(more, []);
  t.like(block, { device: 'disk', inserted: { ro: false, drv: 'raw', image: { 'virtual-size': 16 << 20 } } });
  t.like(await monitor.execute('query-name'), { name: running.name });
  t.regex((await monitor.execute('query-uuid')).UUID, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  t.like(await monitor.execute('query-kvm'), { enabled: false });
});

monitorTest('each command of the schema is listed, and those that ask nothing wrong answer', async (t) => {
  const commands = new Set((await monitor.execute('query-commands')).map(({ name }) => name));
  const schema = introspect() as unknown as { 'meta-type': string; name: string }[];
  for (const info of schema) if (info['meta-type'] === 'command') t.true(commands.has(info.name), info.name);
  for (const name of [...commands].filter((command) => command.startsWith('query-'))) {
    // One of them has to be told whose counters are meant
    const given = name === 'query-stats' ? { target: 'vcpu' } : {};
    await t.notThrowsAsync(monitor.request(name, given), name);
  }
});

monitorTest(
  'stop halts the guest and its clock of work, cont goes on; STOP and RESUME come once each',
  async (t, running) => {
    events.length = 0;
    running.type('n=0; while [ ! -e /tmp/end ]; do n=$((n+1)); echo tick $n; usleep 20000; done\r');
    await running.expect(/tick 10\r/);
    await monitor.execute('stop');
    t.deepEqual(await monitor.execute('query-status'), { running: false, singlestep: false, status: 'paused' });
    // What was said before may still be on its way.
    await new Promise((resolve) => setTimeout(resolve, 500));
    const said = running.command.stdout.length;
    running.type('x');
    await new Promise((resolve) => setTimeout(resolve, 1500));
    t.is(running.command.stdout.length, said, 'a guest that stands says nothing');
    await monitor.execute('cont');
    const next = Number((await running.expect(/tick (\d+)\r/))[1]);
    t.true(next >= 10);
    await running.expect(new RegExp(`tick ${next + 20}\\r`));
    running.type('\x03');
    await running.mustShell('true');
    t.deepEqual(
      events.map(({ event }) => event),
      ['STOP', 'RESUME'],
    );
    const ticks = [...running.command.stdout.matchAll(/tick (\d+)\r/g)].map((match) => Number(match[1]));
    t.deepEqual(
      ticks,
      Array.from({ length: ticks.length }, (_, index) => index + 1),
    );
  },
);

monitorTest('socat stops and continues it, too', async (t, running) => {
  if (!hasPrograms(t, 'socat')) return;
  const ran = spawnSync('socat', ['-t', '10', '-', `UNIX-CONNECT:${running.qmpPath}`], {
    input: ['qmp_capabilities', 'stop', 'query-status', 'cont', 'query-status']
      .map((execute) => `${JSON.stringify({ execute })}\n`)
      .join(''),
    encoding: 'utf8',
    timeout: 30_000,
  });
  t.is(ran.status, 0, ran.stderr);
  const answers = ran.stdout.split('\r\n').filter((line) => line.includes('"status"') && line.includes('"return"'));
  t.deepEqual(
    answers.map((line) => JSON.parse(line).return.status),
    ['paused', 'running'],
  );
  t.is(await running.mustShell('echo $((6*7))'), '42\n');
});

monitorTest('caisson qmp and caisson list see the same', async (t, running) => {
  const { status, stdout } = await caisson(folder, ['qmp', running.name, 'query-status']);
  t.is(status, 0);
  t.regex(stdout, /"status": ?"running"/);
  const list = await caisson(folder, ['list', '--json']);
  t.like(JSON.parse(list.stdout), { name: running.name, status: 'running', harts: 2, ramBytes: 256 << 20 });
});

monitorTest(
  'system_reset boots Linux anew; what it had in memory is gone, what it had synced is there',
  async (t, running) => {
    await running.mustShell('echo memory > /tmp/memory; echo disk > /mnt/disk; sync');
    events.length = 0;
    await monitor.execute('system_reset');
    await eventually('RESET', () => named('RESET').length > 0);
    t.deepEqual(named('RESET')[0]!.data, { guest: false, reason: 'host-qmp-system-reset' });
    await running.ready();
    t.is((await running.shell('cat /tmp/memory')).status, 1);
    t.is(await running.mustShell('cat /mnt/disk'), 'disk\n');
    t.true(Number((await running.mustShell('cut -d. -f1 /proc/uptime')).trim()) < 240);
    t.is((await monitor.execute('query-status')).status, 'running');
  },
);

monitorTest('a reboot by the guest is a RESET by the guest', async (t, running) => {
  events.length = 0;
  running.type('reboot\r');
  await eventually('RESET', () => named('RESET').length > 0);
  t.deepEqual(named('RESET')[0]!.data, { guest: true, reason: 'guest-reset' });
  await running.ready();
  t.is(await running.mustShell('cat /mnt/disk'), 'disk\n');
});

monitorTest('system_powerdown presses a button that Linux obeys; the command ends with 0', async (t, running) => {
  events.length = 0;
  await monitor.execute('system_powerdown');
  const { status } = await running.command.exit;
  t.is(status, 0);
  await monitor.closed;
  t.deepEqual(
    events.map(({ event }) => event),
    ['POWERDOWN', 'SHUTDOWN'],
  );
  t.deepEqual(named('SHUTDOWN')[0]!.data, { guest: true, reason: 'guest-shutdown' });
});

monitorTest('quit ends a machine in the middle of a boot, with 0 and a SHUTDOWN by the host', async (t) => {
  const debian = await debianOrSkip(t);
  if (debian === undefined) return;
  const booting = Guest.start(t, { folder, name: 'quitter', debian, args: ['-nographic'] });
  await booting.said(/(Monitor) +caisson qmp/);
  await using client = await booting.qmp();
  const told: string[] = [];
  client.onEvent(({ event, data }) => told.push(`${event} ${JSON.stringify(data)}`));
  await client.execute('quit');
  t.is((await booting.command.exit).status, 0);
  await client.closed;
  t.deepEqual(told, ['SHUTDOWN {"guest":false,"reason":"host-qmp-quit"}']);
});
