import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createQcow2 } from '../../services/nbd/images/mod.ts';
import { hasPrograms, mustRun } from '../nbd/peers.ts';
import { Command, debianOrSkip, ext4Disk, Guest, scratchFolder } from './guest.ts';

// qcow2 images as disks of a machine, each judged by qemu-img when the guest has ended.

const DISK_BYTES = 8 << 20;

/** Our firmware, with a disk; each `ask` is one line at its prompt. */
async function withFirmware(
  t: ExecutionContext,
  drive: readonly string[],
  work: (ask: (line: string, answer: RegExp) => Promise<void>) => Promise<void>,
): Promise<void> {
  const folder = scratchFolder(t);
  const words = ['run', '-name', 'fw', '-m', '64M', '-bios', 'none', '-kernel', 'builtin:firmware', '-nographic'];
  const command = new Command(folder, [...words, ...drive]);
  t.teardown(() => command.kill('SIGKILL'));
  let read = 0;
  const expect = async (answer: RegExp): Promise<void> => {
    await command.until(String(answer), () => answer.exec(command.stdout.slice(read)), 60_000);
    read = command.stdout.length;
  };
  await expect(/ready/);
  await work(async (line, answer) => {
    command.write(`${line}\r`);
    await expect(answer);
  });
  command.write('poweroff\r');
  t.is((await command.exit).status, 0, command.stderr);
}

async function checkClean(t: ExecutionContext, path: string): Promise<void> {
  const report = JSON.parse(await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', '--output=json', path]));
  t.is(report.corruptions ?? 0, 0);
  t.is(report.leaks ?? 0, 0);
}

for (const how of ['-drive', '-blockdev', 'backing-root'] as const) {
  test.serial(`Q7 Q10 a guest writes into a qcow2 disk over a backing file, by ${how}`, async (t) => {
    t.timeout(180_000);
    if (!hasPrograms(t, 'qemu-img')) return;
    const folder = scratchFolder(t);
    const base = join(folder, 'base.raw');
    const top = join(folder, 'top.qcow2');
    writeFileSync(base, new Uint8Array(DISK_BYTES).fill(0x42));
    await createQcow2(top, { sizeBytes: DISK_BYTES, backing: { file: base, format: 'raw' } });
    const words = {
      '-drive': ['-drive', `file=${top},format=qcow2,backing.driver=raw,backing.file.filename=${base}`],
      'backing-root': ['-drive', `file=${top},format=qcow2,backing-root=${folder}`],
      '-blockdev': [
        ...['-blockdev', `driver=file,node-name=base,filename=${base}`],
        ...['-blockdev', `driver=qcow2,node-name=d,file.driver=file,file.filename=${top},backing=base`],
        ...['-device', 'virtio-blk-pci,drive=d'],
      ],
    };
    await withFirmware(t, words[how], async (ask) => {
      await ask('disk write 7', /disk write 7: write \d+/);
      await ask('disk write 9000', /disk write 9000: write \d+/);
      await ask('disk flush', /disk flush: OK/);
    });
    await checkClean(t, top);
    const flat = join(folder, 'flat.raw');
    await mustRun(t, 'qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', top, flat]);
    const bytes = readFileSync(flat);
    t.is(bytes.toString('latin1', 7 * 512, 7 * 512 + 8), 'caisson!');
    t.is(bytes.toString('latin1', 9000 * 512, 9000 * 512 + 8), 'caisson!');
    t.is(bytes[0], 0x42);
    t.true(
      readFileSync(base).every((byte) => byte === 0x42),
      'the backing file was written to',
    );
  });
}

test.serial('Q7 a guest that writes its qcow2 disk at random loses no sector', async (t) => {
  t.timeout(180_000);
  if (!hasPrograms(t, 'qemu-img')) return;
  const folder = scratchFolder(t);
  const path = join(folder, 'load.qcow2');
  await createQcow2(path, { sizeBytes: DISK_BYTES, clusterBytes: 16_384, extendedL2: true });
  await withFirmware(t, ['-drive', `file=${path},format=qcow2`], async (ask) => {
    await ask('disk load 300', /disk load: 300/);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await ask('stop', /stop: done/);
    await ask('disk verify', /disk verify: OK sectors=\d+ bad=0 writes=\d+ errors=0/);
    await ask('disk flush', /disk flush: OK/);
  });
  await checkClean(t, path);
});

test.serial('Q7 Linux has its file system on a qcow2 disk, and e2fsck finds it clean', async (t) => {
  t.timeout(10 * 60_000);
  if (!hasPrograms(t, 'qemu-img', 'mke2fs', 'e2fsck', 'debugfs')) return;
  const debian = await debianOrSkip(t);
  if (debian === undefined) return;
  const folder = scratchFolder(t);
  const raw = await ext4Disk(folder, 'files.img', 64);
  truncateSync(raw, 64 << 20);
  const path = join(folder, 'files.qcow2');
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, path]);
  await mustRun(t, 'qemu-img', ['snapshot', '-c', 'before', path]);
  const guest = Guest.start(t, {
    folder,
    name: 'qcow2',
    debian,
    append: 'console=ttyS0 loglevel=3',
    args: ['-nographic', '-drive', `file=${path},format=qcow2,id=files`],
  });
  await guest.ready();
  await guest.mustShell('seq 1 200000 > /mnt/numbers && sync && md5sum /mnt/numbers');
  await guest.mustShell('cp /mnt/numbers /mnt/more && rm /mnt/numbers && sync');
  guest.type('poweroff\r');
  const { status, stdout } = await guest.command.exit;
  t.is(status, 0);
  t.notRegex(stdout, /I\/O error|EXT4-fs error/);
  await checkClean(t, path);
  const after = join(folder, 'after.raw');
  await mustRun(t, 'qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', path, after]);
  await mustRun(t, 'e2fsck', ['-fn', after]);
  const sum = Array.from({ length: 200_000 }, (_, index) => `${index + 1}\n`).join('');
  t.is(await mustRun(t, 'debugfs', ['-R', 'cat /more', after]), sum);
  await mustRun(t, 'qemu-img', ['snapshot', '-a', 'before', path]);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
});
