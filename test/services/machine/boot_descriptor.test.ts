import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { BootError } from '../../../emulator/machine/boot_error.ts';
import { wasm } from '../../../emulator/wasm/platform.ts';
import { firmwareElf } from '../../../guests/firmware/mod.ts';
import { readAll } from '../../../protocols/bytes/mod.ts';
import { BootDescriptor, readDescriptor } from '../../../services/machine/boot_descriptor.ts';
import { MachineRig } from '../../fixtures/machine_rig.ts';

const MIB = 1 << 20;

function temporaryFolder(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-boot-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  return folder;
}

function open(t: ExecutionContext, bytes: Uint8Array): { fd: number; path: string } {
  const path = join(temporaryFolder(t), 'file');
  writeFileSync(path, bytes);
  const fd = openSync(path, 'r+');
  t.teardown(() => closeSync(fd));
  return { fd, path };
}

test('BootDescriptor reads by offset into shared memory, wherever the descriptor stands', (t) => {
  const bytes = Uint8Array.from({ length: 5000 }, (_, index) => index % 251);
  const { fd } = open(t, bytes);
  readSync(fd, new Uint8Array(1000));
  const source = new BootDescriptor(fd, 'kernel').open();
  t.is(source.length, 5000);
  const memory = new Uint8Array(new wasm.Memory({ initial: 1, maximum: 1, shared: true }).buffer);
  source.read(100, memory.subarray(10, 4010));
  t.deepEqual([...memory.subarray(9, 4011)], [0, ...bytes.subarray(100, 4100), 0]);
  t.deepEqual(readAll(source), bytes);
});

test('BootDescriptor says so where the file has become shorter, or is none', (t) => {
  const { fd } = open(t, new Uint8Array(5000));
  const source = new BootDescriptor(fd, 'initrd').open();
  ftruncateSync(fd, 4096);
  t.throws(() => readAll(source), {
    instanceOf: BootError,
    code: 'ERR_BOOT_READ',
    message: 'Cannot read initrd: it ends at 4096, 904 bytes before it should',
  });
  const folder = openSync(temporaryFolder(t), 'r');
  t.teardown(() => closeSync(folder));
  t.throws(() => new BootDescriptor(folder, 'kernel').open().read(0, new Uint8Array(1)), { code: 'ERR_BOOT_READ' });
  t.throws(() => new BootDescriptor(0x7fff_0000, 'kernel').open(), { code: 'ERR_BOOT_READ' });
});

test('readDescriptor() gives the whole file and closes it', (t) => {
  const path = join(temporaryFolder(t), 'file');
  writeFileSync(path, 'tree');
  const fd = openSync(path, 'r');
  t.is(Buffer.from(readDescriptor(fd, 'device tree')).toString(), 'tree');
  t.throws(() => fstatSync(fd), { code: 'EBADF' });
});

test.serial('A kernel that becomes shorter while it is loaded makes no machine', (t) => {
  const { fd } = open(t, firmwareElf());
  const descriptor = new BootDescriptor(fd, 'kernel');
  const kernel = {
    open() {
      const source = descriptor.open();
      return {
        length: source.length,
        read(offset: number, into: Uint8Array) {
          // The headers are all there, what they promise no more
          if (into.length > 4096) ftruncateSync(fd, 4096);
          source.read(offset, into);
        },
      };
    },
  };
  t.throws(() => new MachineRig({ kernel }), { instanceOf: BootError, code: 'ERR_BOOT_READ' });
});

test.serial('Kernel and initrd by descriptor are loaded again with each reset, as they are then', async (t) => {
  const kernel = open(t, firmwareElf());
  const initrd = open(t, Uint8Array.of(1, 2, 3, 4));
  await using rig = new MachineRig({
    kernel: new BootDescriptor(kernel.fd, 'kernel'),
    initrd: new BootDescriptor(initrd.fd, 'initrd'),
  });
  // Behind half of RAM, as QEMU places it
  const loaded = (): number[] => [...rig.machine.ram(16 * MIB, 6)];
  t.deepEqual(loaded(), [1, 2, 3, 4, 0, 0]);
  rig.machine.start();
  await rig.expect(/ready/);
  rig.type('reboot\r');
  t.deepEqual(await rig.event('reset'), { kind: 'reset', reason: 'guest-reset' });
  await rig.expect(/caisson firmware:[\s\S]*ready/);

  rig.events.length = 0;
  writeSync(initrd.fd, Uint8Array.of(9, 8, 7, 6, 5), 0, 5, 0);
  await rig.machine.pause();
  rig.machine.reset();
  await rig.event('reset');
  t.deepEqual(loaded(), [9, 8, 7, 6, 5, 0]);
  rig.machine.resume();
  await rig.expect(/caisson firmware:[\s\S]*ready/);
  t.deepEqual(rig.problems, []);

  rig.events.length = 0;
  truncateSync(kernel.path, 100);
  rig.machine.reset();
  t.deepEqual(await rig.event('status'), { kind: 'status', status: 'internal-error' });
  t.is(rig.problems.length, 1);
  t.regex(rig.problems[0]!, /^ERR_BOOT_KERNEL: /);
});
