import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { promisify } from 'node:util';
import test from 'ava';
import { Machine, MachineError } from '../../library/mod.ts';

const FIRMWARE = { bios: 'none', kernel: { builtin: 'firmware' }, ramBytes: 32 << 20, display: false } as const;

test('the example of the README moves a guest, and its checksum is right', async (t) => {
  const example = join(import.meta.dirname, '..', '..', 'examples', 'move_a_guest.ts');
  const { stdout } = await promisify(execFile)(process.execPath, [example], { timeout: 60_000 });
  t.regex(stdout, /moved in \d+ ms/);
  t.regex(stdout, /checksum: OK /);
});

for (const isolation of ['processes', 'embedded'] as const) {
  test(`Machine starts, pauses, resumes and closes (${isolation})`, async (t) => {
    await using machine = await Machine.create({ ...FIRMWARE, name: `life-${isolation}`, isolation });
    t.is(await machine.status(), 'prelaunch');
    await machine.start();
    t.is(await machine.status(), 'running');
    await machine.pause();
    t.is(await machine.status(), 'paused');
    await machine.resume();
    // The firmware empties its input when it starts
    const reader = machine.serial.readable.getReader();
    for (let text = ''; !text.includes('ready'); ) text += new TextDecoder().decode((await reader.read()).value);
    const writer = machine.serial.writable.getWriter();
    await writer.write(new TextEncoder().encode('poweroff 7\n'));
    const exit = await machine.exit;
    t.is(exit.exitCode, 7);
  });
}

test('Machine.stop() ends a guest that runs, by the host', async (t) => {
  await using machine = await Machine.create({ ...FIRMWARE, name: 'stopped' });
  await machine.start();
  t.is((await machine.stop()).reason, 'host');
  await t.throwsAsync(machine.status());
});

test('Machine.migrate() to nobody throws, and the guest runs on', async (t) => {
  await using machine = await Machine.create({ ...FIRMWARE, name: 'alone' });
  await machine.start();
  const error = await t.throwsAsync(machine.migrate('unix:/nonexistent/caisson.sock'));
  t.true(error instanceof MachineError || 'code' in error);
  t.is(await machine.status(), 'running');
});

test('Machine.create() refuses options that make no machine', async (t) => {
  await t.throwsAsync(Machine.create({ name: 'x', bios: 'none' }), { code: 'ERR_VM_OPTIONS' });
  await t.throwsAsync(Machine.create({ ...FIRMWARE, name: 'x', harts: 9 }), { code: 'ERR_VM_OPTIONS' });
  await t.throwsAsync(Machine.create({ ...FIRMWARE, name: '../x' }), { code: 'ERR_VM_OPTIONS' });
});

test('Machine.create() with a truncated kernel says so, and leaves nothing running', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-kernel-'));
  t.teardown(() => rm(folder, { recursive: true }));
  const file = join(folder, 'kernel');
  await writeFile(file, Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 2, 1, 1));
  await t.throwsAsync(Machine.create({ name: 'bad', kernel: { file }, display: false }), { code: 'ERR_BOOT_KERNEL' });
});
