// QEMU as a whole beside our server and client: a machine with our export as its disk, mirrors and storage daemons.
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { firmwareElf } from '../../guests/firmware/mod.ts';
import { NbdClient, RawImage } from '../../services/nbd/mod.ts';
import { Qemu } from '../guests/qemu.ts';
import { hasPrograms, listening, mustRun, PeerServer, run, scratch } from './peers.ts';
import { serve } from './served.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
let count = 0;

function newFile(contents: Buffer | number): string {
  const file = path(`file${count++}.raw`);
  writeFileSync(file, typeof contents === 'number' ? '' : contents);
  if (typeof contents === 'number') truncateSync(file, contents);
  return file;
}

/** Our server on a socket of its own; `close` leaves the file as clients have flushed it. */
async function served(t: ExecutionContext, file: string, socket = path(`s${count++}`)) {
  const image = await RawImage.open(file, { readOnly: false });
  const address = { type: 'unix', path: socket } as const;
  const { uriOf, close } = await serve(t, image, [{ name: 'disk', writable: true }], address, {
    limits: { drainMs: 100 },
  });
  return { socket, uri: uriOf('disk'), close };
}

function guest(t: ExecutionContext, disk: readonly string[]): Qemu {
  const qemu = new Qemu((folder) => {
    const elf = join(folder, 'firmware.elf');
    writeFileSync(elf, firmwareElf());
    const device = ['-device', 'virtio-blk-pci,drive=d'];
    return ['-bios', 'none', '-kernel', elf, '-m', '64M', ...disk, ...device];
  });
  t.teardown(() => qemu[Symbol.asyncDispose]());
  return qemu;
}

test('a guest of QEMU has our export as its disk', async (t) => {
  if (!hasPrograms(t, 'qemu-system-riscv64')) return;
  t.timeout(120_000);
  const file = newFile(MIB);
  const server = await served(t, file);
  const qemu = guest(t, ['-drive', `file=${server.uri},format=raw,if=none,id=d`]);
  await qemu.expect(/ready/);
  await qemu.ask('disk load 300', /disk load: 300/);
  await new Promise((resolve) => setTimeout(resolve, 1000));
  await qemu.ask('stop', /stop: done/);
  await qemu.ask('disk write 9', /disk write 9: write (\d+)/);
  await qemu.ask('disk flush', /disk flush: OK/);
  await qemu.ask('disk verify', /disk verify: OK sectors=\d+ bad=0 writes=\d+ errors=0/);
  qemu.type('poweroff\r');
  await qemu.exit;
  await server.close();
  const sector = readFileSync(file).subarray(9 * 512, 10 * 512);
  t.is(sector.toString('latin1', 0, 8), 'caisson!');
});

test('a guest of QEMU goes on when our server behind its disk ends and comes again', async (t) => {
  if (!hasPrograms(t, 'qemu-system-riscv64')) return;
  t.timeout(180_000);
  const file = newFile(MIB);
  let server = await served(t, file);
  const node = `nbd,node-name=d,reconnect-delay=60,export=disk,server.type=unix,server.path=${server.socket}`;
  const qemu = guest(t, ['-blockdev', node]);
  await qemu.expect(/ready/);
  await qemu.ask('disk load 200', /disk load: 200/);
  for (let round = 0; round < 3; round++) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    await server.close();
    await new Promise((resolve) => setTimeout(resolve, 300));
    server = await served(t, file, server.socket);
  }
  await new Promise((resolve) => setTimeout(resolve, 1500));
  await qemu.ask('stop', /stop: done/, 60_000);
  await qemu.ask('disk flush', /disk flush: OK/);
  await qemu.ask('disk verify', /disk verify: OK sectors=\d+ bad=0 writes=\d+ errors=0/);
  qemu.type('poweroff\r');
  t.is((await qemu.exit).status, 0);
});

test('QEMU mirrors a running guest’s disk onto our server, and goes on with it there', async (t) => {
  if (!hasPrograms(t, 'qemu-system-riscv64', 'qemu-img')) return;
  t.timeout(120_000);
  const source = newFile(randomBytes(4 * MIB));
  const target = newFile(4 * MIB);
  const server = await served(t, target);
  const qemu = guest(t, ['-blockdev', `file,node-name=f,filename=${source}`, '-blockdev', 'raw,node-name=d,file=f']);
  await qemu.expect(/ready/);
  await qemu.ask('disk load 100', /disk load: 100/);
  const node = { driver: 'nbd', 'node-name': 't', export: 'disk', server: { type: 'unix', path: server.socket } };
  await qemu.qmp([
    { execute: 'blockdev-add', arguments: node },
    { execute: 'blockdev-mirror', arguments: { 'job-id': 'm', device: 'd', target: 't', sync: 'full' } },
  ]);
  for (let tries = 0; ; tries++) {
    const [jobs] = (await qemu.qmp([{ execute: 'query-block-jobs' }])) as { ready?: boolean }[][];
    if (jobs?.[0]?.ready === true) break;
    t.true(tries < 200 && (jobs?.length ?? 0) > 0, JSON.stringify(jobs));
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await qemu.qmp([{ execute: 'block-job-complete', arguments: { device: 'm' } }]);
  await new Promise((resolve) => setTimeout(resolve, 700));
  await qemu.ask('stop', /stop: done/);
  await qemu.ask('disk write 11', /disk write 11: write (\d+)/);
  await qemu.ask('disk flush', /disk flush: OK/);
  await qemu.ask('disk verify', /disk verify: OK sectors=\d+ bad=0 writes=\d+ errors=0/);
  qemu.type('poweroff\r');
  await qemu.exit;
  await server.close();
  const [mine, theirs] = [readFileSync(target), readFileSync(source)];
  t.is(mine.toString('latin1', 11 * 512, 11 * 512 + 8), 'caisson!');
  // The guest's sectors are in the first megabyte; what it never wrote is the source's, to the byte.
  t.true(mine.subarray(MIB).equals(theirs.subarray(MIB)));
});

test('our client reads and writes what qemu-storage-daemon exports, with its bitmap', async (t) => {
  if (!hasPrograms(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const disk = path('qsd.qcow2');
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', disk, '4M']);
  await mustRun(t, 'qemu-img', ['bitmap', '--add', '-f', 'qcow2', disk, 'b0']);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 1M 64k', disk]);
  const socket = path('qsd.sock');
  const daemon = await PeerServer.start(
    t,
    'qemu-storage-daemon',
    [
      ...['--blockdev', `file,node-name=f,filename=${disk}`, '--blockdev', 'qcow2,node-name=n,file=f'],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket},max-connections=4`],
      ...['--export', 'type=nbd,id=e,node-name=n,name=disk,writable=on,bitmaps.0=b0'],
    ],
    socket,
  );
  const contexts = ['base:allocation', 'qemu:dirty-bitmap:b0'];
  const client = await NbdClient.connect(`nbd+unix:///disk?socket=${socket}`, { contexts });
  t.deepEqual([...client.contexts].sort(), contexts);
  t.deepEqual((await client.status(0, 4 * MIB)).get('qemu:dirty-bitmap:b0'), [
    { lengthBytes: MIB, flags: 0 },
    { lengthBytes: 64 << 10, flags: 1 },
    { lengthBytes: 3 * MIB - (64 << 10), flags: 0 },
  ]);
  const data = randomBytes(200_000);
  await client.write(2 * MIB + 5, data, { fua: true });
  await client.writeZeroes(1 << 20, 4096);
  await client.trim(3 * MIB, 65_536);
  const into = Buffer.alloc(data.length);
  await client.read(2 * MIB + 5, into);
  t.true(into.equals(data));
  await client.close();
  await daemon.stop();
  await mustRun(t, 'qemu-img', ['check', disk]);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'read -P 0 1M 4k', '-c', 'read -P 7 1028k 60k', disk]);
});

test('qemu-img bench reads and writes our export', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const server = await served(t, newFile(16 * MIB));
  for (const write of [[], ['-w', '--flush-interval=64']]) {
    const args = ['bench', '-f', 'raw', '-c', '4000', '-d', '64', '-s', '4096', ...write, server.uri];
    t.regex(await mustRun(t, 'qemu-img', args), /Run completed/);
  }
  const { status } = await run('qemu-img', ['bench', '-f', 'raw', '-c', '10', '-o', '17M', server.uri]);
  t.not(status, 0, 'behind the end');
  await listening(server.socket);
});
