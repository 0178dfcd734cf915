import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { firmwareElf } from '../../guests/firmware/mod.ts';
import { decodePpm, Qemu, qemuVersion } from './qemu.ts';

// Our firmware under someone else's emulator: what it finds there, it must find under ours.

function skipped(t: ExecutionContext): boolean {
  if (qemuVersion() !== undefined) return false;
  t.log('SKIPPED: qemu-system-riscv64 is not installed');
  t.pass();
  return true;
}

function start(t: ExecutionContext, devices: (folder: string) => readonly string[], harts = 1): Qemu {
  const qemu = new Qemu((folder) => {
    const elf = join(folder, 'firmware.elf');
    writeFileSync(elf, firmwareElf());
    const machine = ['-bios', 'none', '-kernel', elf, '-m', '96M', '-smp', String(harts)];
    return [...machine, '-global', 'virtio-mmio.force-legacy=false', ...devices(folder)];
  });
  t.teardown(() => qemu[Symbol.asyncDispose]());
  return qemu;
}

function disk(folder: string, device: string): string[] {
  const image = join(folder, 'disk.img');
  writeFileSync(image, '');
  truncateSync(image, 1 << 20);
  return ['-drive', `file=${image},format=raw,if=none,id=disk`, '-device', `${device},drive=disk`];
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test('firmware counts without losing a store, and a store lost on purpose is found', async (t) => {
  if (skipped(t)) return;
  const qemu = start(t, () => [], 4);
  await qemu.expect(/caisson firmware: 96 MiB of RAM/);
  await qemu.expect(/harts=4/);
  await qemu.expect(/ready/);
  await qemu.ask('count 50000', /count: generation=5\d{4} pages=16384/);
  await qemu.ask('dirty 50', /dirty: 50 MiB\/s/);
  await pause(1000);
  await qemu.ask('stop', /stop: done/);
  const [, generation] = await qemu.ask('checksum', /checksum: OK generation=(\d+) .*bad-words=0 online-bad=0/);
  t.true(Number(generation) > 55_000, 'a second at 50 MiB/s is 12,800 pages');
  await qemu.ask('spoil 77', /spoil: one bit of page 77/);
  await qemu.ask('checksum', /checksum: BAD .*bad-pages=1 bad-words=1 /);
  qemu.type('poweroff 42\r');
  t.is((await qemu.exit).status, 42);
});

for (const bus of ['virtio-blk-device', 'virtio-blk-pci']) {
  test(`firmware writes and verifies its disk on ${bus}, and the image holds what it wrote`, async (t) => {
    if (skipped(t)) return;
    const qemu = start(t, (folder) => disk(folder, bus));
    await qemu.expect(/ready/);
    await qemu.ask('disk write 9', /disk write 9: write 1/);
    await qemu.ask('disk load 300', /disk load: 300/);
    await pause(1000);
    await qemu.ask('stop', /stop: done/);
    await qemu.ask('disk write 9', /disk write 9: write (\d+)/);
    const [, write] = await qemu.ask('disk read 9', /disk read 9: ours, write (\d+), OK/);
    await qemu.ask('disk flush', /disk flush: OK/);
    await qemu.ask('disk verify', /disk verify: OK sectors=\d+ bad=0 writes=\d+ errors=0/);
    const sector = readFileSync(join(qemu.folder, 'disk.img')).subarray(9 * 512, 10 * 512);
    t.is(sector.toString('latin1', 0, 8), 'caisson!');
    t.is(sector.readBigUInt64LE(8), 9n);
    t.is(sector.readBigUInt64LE(16), BigInt(write!));
    await qemu.ask('disk read 2048', /error: disk info/);
    qemu.type('poweroff\r');
    t.is((await qemu.exit).status, 0);
  });
}

for (const bus of ['device', 'pci']) {
  test(`firmware draws its card and echoes keys and buttons on virtio-*-${bus}`, async (t) => {
    if (skipped(t)) return;
    const names = ['virtio-gpu', 'virtio-keyboard', 'virtio-tablet'];
    const qemu = start(t, () => names.flatMap((name) => ['-device', `${name}-${bus}`]));
    await qemu.expect(/inputs=2 display=1280x800/);
    await qemu.expect(/ready/);
    await qemu.pressKeys(['h', 'i']);
    for (const key of [35, 23]) for (const edge of ['down', 'up']) await qemu.expect(new RegExp(`key ${key} ${edge}`));
    const axis = (name: string, value: number) => ({ type: 'abs', data: { axis: name, value } });
    const events = [axis('x', 1000), axis('y', 2000), { type: 'btn', data: { button: 'left', down: true } }];
    await qemu.qmp([{ execute: 'input-send-event', arguments: { events } }]);
    await qemu.expect(/button 272 down at 1000 2000/);
    const shot = async (name: string) => {
      const file = join(qemu.folder, name);
      await qemu.qmp([{ execute: 'screendump', arguments: { filename: file } }]);
      return decodePpm(readFileSync(file));
    };
    const first = await shot('first.ppm');
    t.deepEqual([first.width, first.height], [1280, 800]);
    t.deepEqual(
      [20, 180, 340, 500, 660, 820, 980, 1140].map((x) => first.at(x, 100).join()),
      [...['255,255,255', '255,255,0', '0,255,255', '0,255,0', '255,0,255', '255,0,0', '0,0,255', '0,0,0']],
    );
    // Moved by taking it away and drawing it anew: a picture between the two has none
    const bar = async () => {
      for (let attempt = 0; attempt < 20; attempt++) {
        const picture = await shot('bar.ppm');
        for (let x = 0; x < picture.width; x++) if (picture.at(x, 772).join() === '255,176,0') return x;
        await pause(30);
      }
      throw new Error('No picture of twenty has the bar');
    };
    const before = await bar();
    await pause(700);
    t.not(await bar(), before, 'the bar moves');
    qemu.type('info\r');
    await qemu.expect(/keys=4 /);
  });
}

test('firmware reboots into a fresh start', async (t) => {
  if (skipped(t)) return;
  const qemu = start(t, (folder) => [...disk(folder, 'virtio-blk-device'), '-device', 'virtio-gpu-device']);
  await qemu.expect(/ready/);
  await qemu.ask('count 1000', /generation=10\d\d /);
  await qemu.ask('reboot', /reboot\s+caisson firmware:[\s\S]*ready/);
  await qemu.ask('checksum', /checksum: OK generation=\d{1,2} /);
  await qemu.ask('nonsense', /error: unknown command: nonsense/);
  qemu.type('poweroff\r');
  t.is((await qemu.exit).status, 0);
});
