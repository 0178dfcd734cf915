// `caisson nbd --processes`: other people's clients with several connections, each served by a process of its own.
import { randomBytes } from 'node:crypto';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { NbdClient } from '../../services/nbd/mod.ts';
import { hasPrograms, mustRun, PeerServer, scratch } from './peers.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));
const MIB = 1 << 20;

async function caisson(t: ExecutionContext, name: string, ...args: string[]): Promise<string> {
  const socket = path(`${name}.sock`);
  await PeerServer.start(t, process.execPath, [MAIN, 'nbd', '-tk', socket, '-e8', '--processes=3', ...args], socket);
  return `nbd+unix:///?socket=${socket}`;
}

test('nbdcopy with four connections, in and out: all of it arrives, and a flush covers all', async (t) => {
  if (!hasPrograms(t, 'nbdcopy', 'nbdinfo')) return;
  const [source, disk, back] = [path('source.raw'), path('disk.raw'), path('back.raw')];
  writeFileSync(source, randomBytes(32 * MIB));
  writeFileSync(disk, '');
  truncateSync(disk, 32 * MIB);
  const uri = await caisson(t, 'copy', '-f', 'raw', disk);
  await mustRun(t, 'nbdinfo', ['--can', 'multi-conn', uri]);
  const many = ['--connections=4', '--threads=4', '--requests=16'];
  await mustRun(t, 'nbdcopy', [...many, '--flush', source, uri]);
  t.true(readFileSync(disk).equals(readFileSync(source)));
  await mustRun(t, 'nbdcopy', [...many, uri, back]);
  t.true(readFileSync(back).equals(readFileSync(source)));
});

test('fio verifies what four jobs have written', async (t) => {
  if (!hasPrograms(t, 'fio')) return;
  const disk = path('fio.raw');
  writeFileSync(disk, '');
  truncateSync(disk, 32 * MIB);
  const uri = await caisson(t, 'fio', '-f', 'raw', disk);
  await mustRun(t, 'fio', [
    ...['--name=v', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bs=4k', '--iodepth=16', '--verify=crc32c'],
    ...[
      '--numjobs=4',
      '--size=8m',
      '--offset_increment=8m',
      '--thread',
      '--do_verify=1',
      '--verify_fatal=1',
      '--verify_state_save=0',
    ],
  ]);
});

test('--discard=unmap gives space back from every process', async (t) => {
  const disk = path('unmap.raw');
  writeFileSync(disk, randomBytes(8 * MIB));
  const before = statSync(disk).blocks;
  const uri = await caisson(t, 'unmap', '-f', 'raw', '--discard=unmap', disk);
  const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await there.trim(0, 4 * MIB);
  await there.flush();
  const after = statSync(disk).blocks;
  if (after === before) t.log('SKIPPED: this file system keeps trimmed blocks');
  else t.true(after <= before / 2 + 64, `${before} to ${after}`);
  const into = new Uint8Array(4096).fill(1);
  await here.read(0, into);
  t.is(
    into.some((byte) => byte !== 0),
    after === before,
  );
  await Promise.all([here.close(), there.close()]);
});

test('qemu-img compares a read-only qcow2 image that several processes serve', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'nbdcopy')) return;
  const [raw, qcow2, back] = [path('c.raw'), path('c.qcow2'), path('c.back')];
  writeFileSync(raw, randomBytes(8 * MIB));
  await mustRun(t, 'qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', raw, qcow2]);
  const uri = await caisson(t, 'qcow2', '-r', '-f', 'qcow2', qcow2);
  await mustRun(t, 'nbdcopy', ['--connections=4', '--threads=4', uri, back]);
  t.true(readFileSync(back).equals(readFileSync(raw)));
  await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, raw]);
});
