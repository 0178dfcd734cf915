import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { findProgram, hasPrograms, mustRun, run } from '../nbd/peers.ts';
import { debianOrSkip, ext4Disk, Guest, Scope, scratchFolder } from './guest.ts';

// The disks of a guest that runs, read by other people's NBD clients.

const MIB = 1 << 20;
const RAW_BYTES = 64 * MIB;
const PATTERN_AT = 3 * 65_536;

const scope = new Scope();
let guest: Guest | undefined;
let folder = '';

test.before(async (t) => {
  t.timeout(10 * 60_000);
  if (!hasPrograms(t as ExecutionContext, 'mke2fs')) return;
  const debian = await debianOrSkip(t as ExecutionContext);
  if (debian === undefined) return;
  folder = scratchFolder(scope);
  const files = await ext4Disk(folder);
  const raw = join(folder, 'raw.img');
  writeFileSync(raw, '');
  truncateSync(raw, RAW_BYTES);
  guest = Guest.start(scope, {
    folder,
    name: 'disks',
    debian,
    append: 'console=ttyS0 loglevel=3',
    args: [
      ...['-nographic', '-drive', `file=${files},format=raw,id=files`],
      ...['-drive', `file=${raw},format=raw,if=none,id=raw`, '-device', 'virtio-blk-device,drive=raw'],
    ],
  });
  await guest.ready();
});
test.after.always(() => scope.close());

const diskTest = (
  title: string,
  programs: readonly string[],
  body: (t: ExecutionContext, guest: Guest, uri: (id: string) => Promise<string>) => Promise<void>,
) =>
  test.serial(title, async (t) => {
    t.timeout(5 * 60_000);
    if (!hasPrograms(t, ...programs)) return;
    const running = guest;
    if (running === undefined) {
      t.log('SKIPPED: there is no Debian guest');
      t.pass();
      return;
    }
    await body(t, running, (id) => running.said(new RegExp(`^Disk +(\\S+///${id}\\?\\S+)$`, 'm')));
  });

/** On one of the two buses vda is the one, on the other the other: by size. */
async function rawDevice(running: Guest): Promise<string> {
  const output = await running.mustShell(`grep -lx ${RAW_BYTES / 512} /sys/block/vd?/size`);
  return `/dev/${/vd[ab]/.exec(output)![0]}`;
}

/** What `seq` prints: text that both sides can make. */
const sequence = (last: number) => Buffer.from(Array.from({ length: last }, (_, index) => `${index + 1}\n`).join(''));

diskTest(
  'H9 nbdinfo, nbdcopy and qemu-img read what the guest has synced, while it runs',
  ['nbdinfo', 'nbdcopy', 'qemu-img'],
  async (t, running, uri) => {
    const device = await rawDevice(running);
    await running.mustShell('seq 1 300000 > /tmp/pattern');
    await running.mustShell(`dd if=/tmp/pattern of=${device} bs=64k seek=${PATTERN_AT / 65_536} conv=fsync 2>&1`);
    const expected = Buffer.alloc(RAW_BYTES);
    expected.set(sequence(300_000), PATTERN_AT);
    const wanted = join(folder, 'wanted.raw');
    writeFileSync(wanted, expected);

    const raw = await uri('raw');
    const info = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', raw]));
    t.like(info.exports[0], { 'export-name': 'raw', 'export-size': RAW_BYTES, is_read_only: true });
    const copy = join(folder, 'copy.raw');
    await mustRun(t, 'nbdcopy', ['--connections=2', raw, copy]);
    t.true(readFileSync(copy).equals(expected));
    await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', raw, wanted]);
    const list = await mustRun(t, 'nbdinfo', ['--list', raw.replace('///raw', '///')]);
    t.regex(list, /export="files"/);
  },
);

diskTest(
  'a copy of a file system at rest is clean and has the file',
  ['nbdcopy', 'e2fsck', 'debugfs'],
  async (t, running, uri) => {
    await running.mustShell('seq 1 20000 > /mnt/numbers && mount -o remount,ro /mnt');
    const copy = join(folder, 'files.raw');
    await mustRun(t, 'nbdcopy', [await uri('files'), copy]);
    await running.mustShell('mount -o remount,rw /mnt && rm /mnt/numbers');
    t.regex(await mustRun(t, 'e2fsck', ['-fn', copy]), /Pass 5/);
    t.is(await mustRun(t, 'debugfs', ['-R', 'cat /numbers', copy]), sequence(20_000).toString());
  },
);

diskTest(
  'a writer is refused by the exports that the command makes, and nothing changes',
  ['nbdcopy', 'qemu-io', 'nbdinfo'],
  async (t, running, uri) => {
    const device = await rawDevice(running);
    const hash = `echo 3 > /proc/sys/vm/drop_caches; sha256sum ${device}`;
    const before = await running.mustShell(hash);
    const raw = await uri('raw');
    const evil = join(folder, 'evil.raw');
    writeFileSync(evil, Buffer.alloc(RAW_BYTES, 0x55));
    const copied = await run('nbdcopy', [evil, raw]);
    t.not(copied.status, 0);
    t.regex(copied.stderr, /read.?only|not permitted|EPERM/i);
    const written = await run('qemu-io', ['-f', 'raw', '-c', 'write -P 0x55 0 64k', raw]);
    t.regex(written.stdout + written.stderr, /read.?only|permission denied/i);
    t.not((await run('nbdinfo', ['--can', 'write', raw])).status, 0);
    t.is(await running.mustShell(hash), before);
  },
);

diskTest('clients that are killed in mid-copy do the guest no harm', ['nbdcopy'], async (t, running, uri) => {
  const device = await rawDevice(running);
  const raw = await uri('raw');
  // It works on the same disk all the while.
  running.type(
    `(while [ ! -e /tmp/enough ]; do dd if=/tmp/pattern of=${device} bs=64k seek=400 conv=fsync 2>/dev/null || echo FAILED; done; echo over) > /tmp/work 2>&1 &\r`,
  );
  for (let round = 0; round < 5; round++) {
    const client = spawn(findProgram('nbdcopy')!, ['--requests=64', raw, '-'], { stdio: ['ignore', 'pipe', 'ignore'] });
    // Nobody reads on after the first bytes: it stands in the middle, with requests and answers on their way.
    const [chunk] = (await once(client.stdout, 'data')) as [Buffer];
    client.stdout.pause();
    t.true(chunk.length > 0 && chunk.length < RAW_BYTES);
    await new Promise((resolve) => setTimeout(resolve, 200));
    t.is(client.exitCode, null, 'it was still copying');
    client.kill('SIGKILL');
    await once(client, 'exit');
    t.is(await running.status(), 'running');
  }
  await running.mustShell('touch /tmp/enough; wait');
  t.is(await running.mustShell('cat /tmp/work'), 'over\n');
  await running.mustShell(
    `echo 3 > /proc/sys/vm/drop_caches; dd if=${device} bs=64k skip=400 count=40 2>/dev/null | head -c 1000 | cmp - /tmp/pattern 2>&1 | grep -q 'EOF on -'`,
  );
  const copy = join(folder, 'after.raw');
  await mustRun(t, 'nbdcopy', [raw, copy]);
  t.true(
    readFileSync(copy)
      .subarray(400 * 65_536)
      .subarray(0, sequence(300_000).length)
      .equals(sequence(300_000)),
  );
});

diskTest('what a client writes through a writable export, the guest reads', ['qemu-io'], async (t, running, uri) => {
  const device = await rawDevice(running);
  await using monitor = await running.qmp();
  await monitor.execute('nbd-server-add', { device: 'raw', name: 'open', writable: true });
  const open = (await uri('raw')).replace('///raw', '///open');
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 0x5a 48M 1M', '-c', 'flush', open]);
  const command = `echo 3 > /proc/sys/vm/drop_caches; dd if=${device} bs=1M skip=48 count=1 2>/dev/null | tr -d Z | wc -c`;
  t.is((await running.mustShell(command)).trim(), '0');
  await monitor.execute('nbd-server-remove', { name: 'open' });
  t.not((await run('qemu-io', ['-f', 'raw', '-c', 'read 0 512', open])).status, 0);
});

diskTest('the guest ends cleanly after all of that', ['e2fsck'], async (t, running) => {
  running.type('poweroff\r');
  const { status, stdout } = await running.command.exit;
  t.is(status, 0);
  t.notRegex(stdout, /I\/O error|EXT4-fs error|BUG:|Oops/);
  await mustRun(t, 'e2fsck', ['-fn', join(folder, 'disk.img')]);
});
