import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { DebianError, type DebianGuest, makeExt4Disk, prepareDebian } from '../../guests/debian/mod.ts';
import { decodePpm, Qemu, qemuVersion } from './qemu.ts';

// Debian's own kernel with our initramfs under QEMU: the recipe is right before our machine is looked at.

let guest: DebianGuest | undefined;
let reason = 'qemu-system-riscv64 is not installed';

test.before(async (t) => {
  t.timeout(15 * 60_000, 'fetching Debian');
  if (qemuVersion() === undefined) return;
  try {
    guest = await prepareDebian({ onProgress: () => undefined });
  } catch (error) {
    if (!(error instanceof DebianError)) throw error;
    reason = error.message;
  }
});

function start(t: ExecutionContext, append: string, devices: (folder: string) => readonly string[]): Qemu | undefined {
  if (guest === undefined) {
    t.log(`SKIPPED: ${reason}`);
    t.pass();
    return undefined;
  }
  const { kernelPath, initrdPath } = guest;
  const machine = ['-m', '512M', '-smp', '2', '-global', 'virtio-mmio.force-legacy=false'];
  const boot = ['-kernel', kernelPath, '-initrd', initrdPath, '-append', append];
  const qemu = new Qemu((folder) => [...machine, ...boot, ...devices(folder)]);
  t.teardown(() => qemu[Symbol.asyncDispose]());
  return qemu;
}

for (const bus of ['virtio-blk-pci', 'virtio-blk-device']) {
  test.serial(
    `the Debian guest mounts an ext4 disk on ${bus}, runs one command and ends with its status`,
    async (t) => {
      t.timeout(180_000);
      const image = join(tmpdir(), `caisson-ext4-${process.pid}-${bus}.img`);
      const append = 'console=ttyS0 quiet caisson.run="uname -a; mount | grep vda; echo kept > /mnt/file; exit 5"';
      if (guest !== undefined) await makeExt4Disk(image, 16, 'demo');
      t.teardown(() => rmSync(image, { force: true }));
      const drive = ['-drive', `file=${image},format=raw,if=none,id=disk`, '-device', `${bus},drive=disk`];
      const qemu = start(t, append, () => drive);
      if (qemu === undefined) return;
      await qemu.expect(/caisson: guest is ready/, 120_000);
      const { status, output } = await qemu.exit;
      t.regex(output, new RegExp(`Linux caisson ${guest!.version.replaceAll(/[.+]/g, '\\$&')} .* riscv64 GNU/Linux`));
      t.regex(output, /\/dev\/vda on \/mnt type ext4 \(rw/);
      t.regex(output, /caisson: exit status 5/);
      t.is(status, 5, 'through the test device');
      const check = spawnSync('/usr/sbin/e2fsck', ['-n', '-f', image], { encoding: 'utf8' });
      t.is(check.status, 0, check.stdout + check.stderr);
      const file = spawnSync('/usr/sbin/debugfs', ['-R', 'cat /file', image], { encoding: 'utf8' });
      t.is(file.stdout, 'kept\n');
    },
  );
}

test.serial('the Debian guest gives a shell on the serial line and on the screen', async (t) => {
  t.timeout(180_000);
  const qemu = start(t, 'console=tty0 console=ttyS0', () => [
    ...['-device', 'virtio-gpu-pci', '-device', 'virtio-keyboard-pci'],
  ]);
  if (qemu === undefined) return;
  await qemu.expect(/caisson: guest is ready/, 120_000);
  await qemu.expect(/caisson:~# /);
  await qemu.ask('echo $((6 * 7))-$(cat /proc/fb)', /42-0 virtio_gpudrmfb/);
  await qemu.pressKeys([...'touch', 'spc', 'slash', ...'tmp', 'slash', ...'typed', 'ret']);
  await qemu.ask('sleep 1; ls /tmp', /^typed\r?$/m);
  const file = join(qemu.folder, 'screen.ppm');
  await qemu.qmp([{ execute: 'screendump', arguments: { filename: file } }]);
  const picture = decodePpm(readFileSync(file));
  let lit = 0;
  for (let y = 0; y < picture.height; y++) for (let x = 0; x < picture.width; x++) if (picture.at(x, y)[0] > 100) lit++;
  t.true(lit > 2000, `${lit} bright pixels: the console shows text`);
  qemu.type('poweroff\r');
  t.is((await qemu.exit).status, 0);
});
