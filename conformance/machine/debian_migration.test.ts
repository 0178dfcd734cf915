import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import type { DebianGuest } from '../../guests/debian/mod.ts';
import type { QmpClient } from '../../services/shared/mod.ts';
import { decodePpm, type Picture } from '../guests/qemu.ts';
import { hasPrograms, mustRun, run } from '../nbd/peers.ts';
import { findChromium, startChromium } from '../vnc/chromium.ts';
import { ConsolePage, differingPixels, textRows } from './console_page.ts';
import { Command, caisson, debianOrSkip, eventually, ext4Disk, Guest, Scope, scratchFolder } from './guest.ts';
import { SlowWay } from './slow_way.ts';

// One Debian guest at work moves from process to process. It counts: each number is appended to a file, synced to the
// disk, and said on the serial line. A store, a sector or a character that is lost or comes twice shows in the numbers.

const COUNT =
  'n=0; (while [ ! -e /tmp/end ]; do n=$((n+1)); echo $n >> /mnt/log; sync /mnt/log; echo "count $n"; usleep 20000; done) &\r';

const scope = new Scope();
let folder = '';
let disk = '';
let debian: DebianGuest | undefined;
/** Where the guest is now; each test leaves it running */
let here: Guest | undefined;
/** What the processes said on the serial line that had the guest before, in order */
let saidBefore = '';
let names = 0;

test.before(async (t) => {
  t.timeout(10 * 60_000);
  if (!hasPrograms(t as ExecutionContext, 'mke2fs')) return;
  debian = await debianOrSkip(t as ExecutionContext);
  if (debian === undefined) return;
  folder = scratchFolder(scope);
  disk = await ext4Disk(folder, 'disk.img', 32);
  here = start([]);
  await here.ready();
  await here.mustShell('echo 0 > /sys/class/graphics/fbcon/cursor_blink');
  await here.mustShell("printf '\\033[2J\\033[H\\033[7mmoves with the guest\\033[0m\\n' > /dev/tty1");
  here.type(COUNT);
  await here.expect(/count 20\r\n/);
});
test.after.always(() => scope.close());

/** Another process of the same machine, on the same disk. */
function start(more: readonly string[], options: { owner?: { teardown(end: () => unknown): void } } = {}): Guest {
  return Guest.start(options.owner ?? scope, {
    folder,
    name: `place${++names}`,
    debian: debian!,
    args: ['-smp', '2', '-drive', `file=${disk},format=raw`, ...more],
  });
}

const moveTest = (title: string, body: (t: ExecutionContext, guest: Guest) => Promise<void>) =>
  test.serial(title, async (t) => {
    t.timeout(5 * 60_000);
    if (here === undefined) {
      t.log('SKIPPED: there is no Debian guest');
      t.pass();
      return;
    }
    await body(t, here);
  });

/** It counts on, and the numbers that this process said have no gap and no repeat. */
async function countsOn(guest: Guest): Promise<void> {
  const from = guest.command.stdout.length;
  await eventually(`${guest.name} counts`, () => {
    if (guest.command.ended) throw new Error(`${guest.name} has ended: ${guest.command.stderr}`);
    return /count \d+\r\n[\s\S]*count \d+\r\n/.test(guest.command.stdout.slice(from));
  });
}

function expectWholeCount(t: ExecutionContext, text: string): number {
  const numbers = [...text.matchAll(/count (\d+)\r\n/g)].map((match) => Number(match[1]));
  const wrong = numbers.findIndex((number, index) => number !== index + 1);
  t.is(wrong, -1, `after ${numbers.slice(Math.max(0, wrong - 3), wrong)} comes ${numbers[wrong]}`);
  return numbers.length;
}

/** Lets the old place go: what it said stays in evidence, its disk is the new one's. */
async function arrived(t: ExecutionContext, from: Guest, to: Guest): Promise<void> {
  const { status, stderr } = await from.command.exit;
  t.is(status, 0, stderr);
  saidBefore += from.command.stdout;
  here = to;
  await countsOn(to);
  expectWholeCount(t, saidBefore + to.command.stdout);
}

async function picture(guest: Guest): Promise<Picture> {
  const filename = join(folder, `${guest.name}.ppm`);
  await using monitor = await guest.qmp();
  await monitor.execute('screendump', { filename });
  return decodePpm(readFileSync(filename));
}

/** The shell is busy being heard between the numbers: its answer comes in a line of its own. */
async function ask(guest: Guest, line: string): Promise<string> {
  const mark = Math.random().toString(36).slice(2);
  guest.type(`echo "${mark.slice(0, 3)}""${mark.slice(3)}:$(${line}):"\r`);
  return (await guest.expect(new RegExp(`${mark}:([^:]*):`)))[1]!.trim();
}

for (const [what, options, reason] of [
  ['another size of memory', ['-m', '512M'], /RAM size: source has 262144 KiB, destination has 524288 KiB/],
  ['another number of harts', ['-smp', '1'], /harts/],
  ['no display', ['-nographic'], /gpu|display/],
  ['one more disk', ['-drive', 'file=OTHER,format=raw'], /disk|block|blk|device/],
] as const) {
  moveTest(`a machine with ${what} refuses the guest and says why; it runs on where it was`, async (t, guest) => {
    const other = await ext4Disk(scratchFolder(t));
    const args = options.map((word) => word.replace('OTHER', other));
    const place = start([...args, '-incoming', 'tcp:127.0.0.1:0'], { owner: t });
    const { status, stderr } = await caisson(folder, ['migrate', guest.name, await place.listening()]);
    t.is(status, 1);
    t.regex(stderr, /^Migration failed: /m);
    t.regex(stderr, reason);
    t.is(await guest.status(), 'running');
    t.is(await place.status(), 'inmigrate');
    await countsOn(guest);
  });
}

moveTest('nobody at the address: the guest runs on, and the command says so', async (t, guest) => {
  const { status, stderr } = await caisson(folder, ['migrate', guest.name, `unix:${join(folder, 'nobody')}`]);
  t.is(status, 1);
  t.regex(stderr, /ENOENT|refused|Cannot connect/);
  await countsOn(guest);
});

moveTest('Ctrl-C cancels: the guest runs on, and the same destination takes it afterwards', async (t, guest) => {
  const place = start(['-incoming', 'tcp:127.0.0.1:0']);
  const uri = await place.listening();
  const command = new Command(folder, ['migrate', guest.name, uri, '--max-bandwidth', '4M']);
  t.teardown(() => command.kill('SIGKILL'));
  await using monitor = await guest.qmp();
  await untilSent(monitor, 2 << 20);
  await countsOn(guest);
  command.kill('SIGINT');
  const { status, stderr } = await command.exit;
  t.is(status, 1);
  t.regex(stderr, /Migration cancelled/);
  t.is(await guest.status(), 'running');
  t.is(await place.status(), 'inmigrate');
  await countsOn(guest);
  expectWholeCount(t, saidBefore + guest.command.stdout);

  await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 0 });
  const again = await caisson(folder, ['migrate', guest.name, uri], 180_000);
  t.is(again.status, 0, again.stderr);
  await arrived(t, guest, place);
});

/** Of a migration that was asked for; until it is under way the report is the last one's. */
async function untilSent(monitor: QmpClient, bytes: number): Promise<void> {
  await eventually(`${bytes} bytes sent`, async () => {
    const { status, ram } = await monitor.execute('query-migrate');
    return status === 'active' && (ram?.transferred ?? 0) >= bytes;
  });
}

async function hasEnded(monitor: QmpClient): Promise<boolean> {
  const { status } = await monitor.execute('query-migrate');
  return status === 'failed' || status === 'completed';
}

for (const kind of ['tcp', 'unix'] as const) {
  moveTest(`the guest moves over ${kind}: numbers, screen, keys and files are what they were`, async (t, guest) => {
    guest.type(`echo be""fore-${kind} > /tmp/${kind}\r`);
    t.is(await ask(guest, `cat /tmp/${kind}`), `before-${kind}`);
    const before = await picture(guest);
    t.true(textRows(before) >= 1);
    const place = start(['-incoming', kind === 'tcp' ? 'tcp:127.0.0.1:0' : `unix:${join(folder, 'move.sock')}`]);
    const moved = await caisson(folder, ['migrate', guest.name, await place.listening()], 180_000);
    t.is(moved.status, 0, moved.stderr);
    const [, rounds, downtime] = /: (\d+) rounds, .* downtime (\d+) ms/.exec(moved.stderr)!;
    t.log(`${kind}: ${moved.stderr.trim()}`);
    t.true(Number(rounds) >= 2 && Number(downtime) < 10_000);
    await arrived(t, guest, place);
    t.is(await ask(place, `cat /tmp/${kind}`), `before-${kind}`);
    t.is(differingPixels(await picture(place), before), 0);
    t.is(await place.status(), 'running');
  });
}

moveTest('the console page of the new place shows the screen, and its keys reach the guest', async (t, guest) => {
  const executable = findChromium();
  if (executable === undefined) {
    t.log('SKIPPED: no Chromium (apt: chromium)');
    t.pass();
    return;
  }
  const browser = await startChromium(executable);
  t.teardown(() => browser.close());
  const screen = await ConsolePage.open(browser.context, await guest.said(/^Console +(http\S+)$/m));
  await eventually('the same pixels', async () => differingPixels(await screen.picture(), await picture(guest)) === 0);
  t.true(textRows(await screen.picture()) >= 1);
  await screen.type('echo typed-$((6*7)) > /tmp/typed\n');
  await eventually('the file', async () => (await ask(guest, 'cat /tmp/typed')) === 'typed-42');
});

/** The processes of a command's roles, by name. */
function roleOf(guest: Guest, role: string): number {
  const children = readFileSync(`/proc/${guest.command.pid}/task/${guest.command.pid}/children`, 'utf8');
  for (const pid of children.trim().split(' ')) {
    const line = readFileSync(`/proc/${pid}/cmdline`, 'latin1') + readFileSync(`/proc/${pid}/comm`, 'latin1');
    if (new RegExp(`\\b${role}\\b`).test(line)) return Number(pid);
  }
  throw new Error(`${guest.name} has no ${role} role`);
}

moveTest('a destination that is killed anywhere before the switch leaves the guest running here', async (t, guest) => {
  for (const [victim, bytes] of [
    ['command', 0],
    ['migration', 1 << 20],
    ['machine', 3 << 20],
    ['command', 8 << 20],
  ] as const) {
    const place = start(['-incoming', 'tcp:127.0.0.1:0'], { owner: t });
    const uri = await place.listening();
    await using monitor = await guest.qmp();
    await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 8 << 20 });
    await monitor.execute('migrate', { uri });
    if (bytes > 0) await untilSent(monitor, bytes);
    if (victim === 'command') place.command.kill('SIGKILL');
    else process.kill(roleOf(place, victim), 'SIGKILL');
    await eventually(
      'the migration has failed',
      async () => (await monitor.execute('query-migrate')).status === 'failed',
    );
    t.is(await guest.status(), 'running', victim);
    await countsOn(guest);
    expectWholeCount(t, saidBefore + guest.command.stdout);
    await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 0 });
    await place.end();
  }
});

moveTest('a migration role that is killed at the source leaves the guest running there', async (t) => {
  // On a machine of its own: it cannot be migrated afterwards.
  const lonely = Guest.start(t, {
    folder,
    name: 'lonely',
    debian: debian!,
    args: ['-nographic'],
    append: 'console=ttyS0 loglevel=3',
  });
  await lonely.ready();
  const place = Guest.start(t, {
    folder,
    name: 'vain',
    debian: debian!,
    args: ['-nographic', '-incoming', 'tcp:127.0.0.1:0'],
  });
  await using monitor = await lonely.qmp();
  await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 4 << 20 });
  await monitor.execute('migrate', { uri: await place.listening() });
  await untilSent(monitor, 1 << 20);
  process.kill(roleOf(lonely, 'migration'), 'SIGKILL');
  t.is(await lonely.mustShell('echo $((6*7))'), '42\n');
  t.is(await lonely.status(), 'running');
  t.is(await place.status(), 'inmigrate');
});

moveTest('the answer that the guest arrived is lost on the way: it runs there and not here', async (t, guest) => {
  const place = start(['-incoming', 'tcp:127.0.0.1:0']);
  const port = Number((await place.listening()).split(':').at(-1));
  await using way = await SlowWay.open(port, 300);
  await using there = await place.qmp();
  there.onEvent(({ event }) => {
    if (event === 'RESUME') way.cut();
  });
  await using monitor = await guest.qmp();
  await monitor.execute('migrate-set-parameters', { 'max-bandwidth': 0, 'downtime-limit': 5000 });
  await monitor.execute('migrate', { uri: `tcp:127.0.0.1:${way.port}` });
  await eventually('an end', () => hasEnded(monitor), 180_000);
  const { status, 'error-desc': text } = await monitor.execute('query-migrate');
  t.is(status, 'failed');
  t.regex(text ?? '', /handed over and no answer came .* stays paused here/);
  t.is(await place.status(), 'running');
  await t.throwsAsync(monitor.execute('cont'));
  await t.throwsAsync(monitor.execute('migrate', { uri: `tcp:127.0.0.1:${port}` }), { message: /outcome/ });
  t.not(await guest.status(), 'running');
  await monitor.execute('quit');
  await arrived(t, guest, place);
});

/**
 * Exactly when the guest begins to run there, the part that would tell the source so is killed. The last move: the
 * machine cannot be migrated any more.
 */
moveTest(
  'the destination’s migration role is killed as the guest arrives: one of the two runs it',
  async (t, guest) => {
    const place = start(['-incoming', 'tcp:127.0.0.1:0']);
    const uri = await place.listening();
    const victim = roleOf(place, 'migration');
    await using there = await place.qmp();
    there.onEvent(({ event }) => {
      if (event === 'RESUME') process.kill(victim, 'SIGKILL');
    });
    await using monitor = await guest.qmp();
    await monitor.execute('migrate', { uri });
    await eventually('an end', () => hasEnded(monitor), 180_000);
    const { status, 'error-desc': text } = await monitor.execute('query-migrate');
    t.log(`the source says: ${status} ${text ?? ''}`);
    const runs = [await guest.status(), await place.status()].map((state) => state === 'running');
    t.deepEqual(runs, [false, true], 'one runner, and that is the destination');
    await t.throwsAsync(monitor.execute('cont'));
    t.not(await guest.status(), 'running');
    await monitor.execute('quit');
    await arrived(t, guest, place);
  },
);

moveTest('in the end the file on the disk has every number once, and the file system is clean', async (t, guest) => {
  if (!hasPrograms(t, 'e2fsck', 'debugfs')) return;
  guest.type('touch /tmp/end; wait; poweroff\r');
  const { status, stdout } = await guest.command.exit;
  t.is(status, 0);
  const last = expectWholeCount(t, saidBefore + stdout);
  t.notRegex(saidBefore + stdout, /I\/O error|EXT4-fs error|BUG:|Oops|stall/);
  t.regex(await mustRun(t, 'e2fsck', ['-fn', disk]), /Pass 5/);
  const file = await mustRun(t, 'debugfs', ['-R', 'cat /log', disk]);
  t.is(file, Array.from({ length: last }, (_, index) => `${index + 1}\n`).join(''));
});

moveTest(
  'a destination that is killed during the switch: the guest runs here, or it had been handed over',
  async (t) => {
    // It can be lost with its destination: not the guest of the other tests.
    const image = await ext4Disk(folder, 'second.img');
    const begin = (more: readonly string[]) =>
      Guest.start(t, {
        folder,
        name: `risk${++names}`,
        debian: debian!,
        args: ['-nographic', '-drive', `file=${image},format=raw`, ...more],
        append: 'console=ttyS0 loglevel=3',
      });
    const guest = begin([]);
    await guest.ready();
    guest.type(COUNT);
    await guest.expect(/count 20\r\n/);
    await using monitor = await guest.qmp();
    await monitor.execute('migrate-set-parameters', { 'downtime-limit': 2000 });
    let hasStopped = false;
    monitor.onEvent(({ event }) => {
      hasStopped ||= event === 'STOP';
    });
    const outcomes: string[] = [];
    for (const delayMs of [0, 20, 60, 120, 240, 480]) {
      const place = begin(['-incoming', 'tcp:127.0.0.1:0']);
      const uri = await place.listening();
      const victim = roleOf(place, 'machine');
      hasStopped = false;
      await monitor.execute('migrate', { uri });
      await eventually('the guest stops', () => hasStopped, 120_000, 2);
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      process.kill(victim, 'SIGKILL');
      await eventually('an end', () => hasEnded(monitor));
      await place.command.exit;
      const { status, 'error-desc': text } = await monitor.execute('query-migrate');
      if (status === 'completed') {
        outcomes.push('handed over');
        t.not(await guest.status(), 'running');
        await t.throwsAsync(monitor.execute('cont'));
        t.not(await guest.status(), 'running');
        break;
      }
      if (/stays paused/.test(text ?? '')) {
        outcomes.push('open, reclaimed');
        t.not(await guest.status(), 'running');
        await t.throwsAsync(monitor.execute('cont'), undefined, 'the other end may run it');
        // The operator knows that it was killed.
        await monitor.execute('__caisson_migrate-reclaim');
      } else outcomes.push('here');
      await eventually('it runs here', async () => (await guest.status()) === 'running');
      await countsOn(guest);
      expectWholeCount(t, guest.command.stdout);
    }
    t.log(`after each kill the guest was: ${outcomes.join(', ')}`);
    const said = expectWholeCount(t, guest.command.stdout);
    await guest.end();
    if (!hasPrograms(t, 'e2fsck', 'debugfs')) return;
    // Whatever said a number had synced it before; the machine ended without unmounting.
    t.true((await run('e2fsck', ['-fy', image])).status <= 1);
    const numbers = (await mustRun(t, 'debugfs', ['-R', 'cat /log', image])).trim().split('\n').map(Number);
    t.deepEqual(
      numbers,
      Array.from({ length: numbers.length }, (_, index) => index + 1),
    );
    t.true(numbers.length >= said, `${numbers.length} on the disk, ${said} said`);
  },
);
