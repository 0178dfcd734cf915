// Bitmaps, depth, several connections and sparse copies, between ours and other people's programs.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import {
  copyDisk,
  DirtyBitmap,
  ExportSet,
  NbdClient,
  NbdListener,
  NbdReconnectingClient,
  RawImage,
} from '../../services/nbd/mod.ts';
import { hasPrograms, mustRun, PeerServer, scratch } from './peers.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
const KIB = 1024;
const BITMAP = 'qemu:dirty-bitmap:b0';
const DEPTH = 'qemu:allocation-depth';

let count = 0;
function newFile(bytes: number): string {
  const file = path(`file${count++}.raw`);
  writeFileSync(file, '');
  truncateSync(file, bytes);
  return file;
}

/** Our server with a raw image of 4 MiB and a bitmap. */
async function served(t: ExecutionContext, file = newFile(4 * MIB)) {
  const image = await RawImage.open(file, { readOnly: false });
  image.bitmaps.add('b0', new DirtyBitmap(image.sizeBytes));
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: true, bitmaps: ['b0'], allocationDepth: true, resizable: true });
  const listener = await NbdListener.listen({ type: 'unix', path: path(`s${count++}`) }, exports);
  t.teardown(async () => {
    await listener.close();
    await image.close();
  });
  return { uri: listener.uriOf('disk'), file, image };
}

interface MapEntry {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

test('T15: nbdinfo --map reads our dirty bitmap and depth while another client writes', async (t) => {
  if (!hasPrograms(t, 'nbdinfo', 'qemu-io')) return;
  const { uri } = await served(t);
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write 1M 64k', '-c', 'write 3M 4k', uri]);
  const map = async (context: string): Promise<MapEntry[]> =>
    JSON.parse(await mustRun(t, 'nbdinfo', ['--json', `--map=${context}`, uri]));
  const dirty = await map(BITMAP);
  t.deepEqual(
    dirty.map(({ offset, length, type }) => [offset / KIB, length / KIB, type]),
    [
      [0, 1024, 0],
      [1024, 64, 1],
      [1088, 1984, 0],
      [3072, 64, 1],
      [3136, 960, 0],
    ],
  );
  t.deepEqual(
    (await map(DEPTH)).map(({ length, type }) => [length, type]),
    [[4 * MIB, 1]],
  );
  const info = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', uri]));
  t.deepEqual(info.exports[0].contexts, ['base:allocation', DEPTH, BITMAP]);
});

test('T15: qemu-img map sees our bitmap as QEMU’s incremental backups do', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
  const { uri } = await served(t);
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write 2M 64k', uri]);
  const socket = uri.slice(uri.indexOf('socket=') + 7);
  const opts = `driver=nbd,export=disk,server.type=unix,server.path=${socket},x-dirty-bitmap=${BITMAP}`;
  const map = JSON.parse(await mustRun(t, 'qemu-img', ['map', '--output=json', '--image-opts', opts]));
  // With x-dirty-bitmap QEMU shows dirty parts as not having data.
  const dirty = (map as { start: number; length: number; data: boolean }[]).filter(({ data }) => !data);
  t.deepEqual(
    dirty.map(({ start, length }) => [start, length]),
    [[2 * MIB, 64 * KIB]],
  );
});

test('C5: our client reads bitmap and depth of a qcow2 chain that qemu-nbd serves', async (t) => {
  if (!hasPrograms(t, 'qemu-nbd', 'qemu-img', 'qemu-io')) return;
  const [base, top, socket] = [path('base.qcow2'), path('top.qcow2'), path('qemu.sock')];
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', base, '4M']);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write 0 64k', base]);
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top]);
  await mustRun(t, 'qemu-img', ['bitmap', '--add', '-f', 'qcow2', top, 'b0']);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write 1M 64k', top]);
  const args = ['-k', socket, '-f', 'qcow2', '-r', '-t', '-e', '4', '-A', '-B', 'b0', '-x', 'disk', top];
  const server = await PeerServer.start(t, 'qemu-nbd', args, socket);
  const contexts = ['base:allocation', DEPTH, BITMAP];
  const client = await NbdClient.connect(`nbd+unix:///disk?socket=${socket}`, { contexts });
  t.deepEqual([...client.contexts].sort(), [...contexts].sort());
  const found = await client.status(0, 4 * MIB);
  t.deepEqual(found.get(BITMAP), [
    { lengthBytes: MIB, flags: 0 },
    { lengthBytes: 64 * KIB, flags: 1 },
    { lengthBytes: 3 * MIB - 64 * KIB, flags: 0 },
  ]);
  t.deepEqual(
    found.get(DEPTH)!.map(({ flags }) => flags),
    [2, 0, 1, 0],
  );
  await client.close();
  await server.stop();
});

for (const name of ['qemu-nbd', 'nbdkit'] as const) {
  test(`C8: four connections to ${name}, and a flush that covers them`, async (t) => {
    if (!hasPrograms(t, name)) return;
    const file = newFile(8 * MIB);
    const socket = path(`${name}-multi.sock`);
    const args =
      name === 'qemu-nbd'
        ? ['-k', socket, '-f', 'raw', '-t', '-e', '8', '-x', 'disk', file]
        : ['-f', '-U', socket, 'file', file];
    const server = await PeerServer.start(t, name, args, socket);
    const disk = await NbdReconnectingClient.connect(`nbd+unix:///disk?socket=${socket}`, { connections: 4 });
    t.is(disk.connections, 4);
    const writes = Array.from({ length: 256 }, (_, index) =>
      disk.write(index * 32 * KIB, new Uint8Array(32 * KIB).fill(index)),
    );
    await Promise.all(writes);
    await disk.flush();
    await disk.close();
    await server.stop();
    const found = readFileSync(file);
    for (let index = 0; index < 256; index++) t.is(found[(index + 1) * 32 * KIB - 1], index);
  });
}

test('C9: a copy from qemu-nbd onto our server is the same, and its holes are holes', async (t) => {
  if (!hasPrograms(t, 'qemu-nbd', 'qemu-img', 'qemu-io')) return;
  const source = path('copy.qcow2');
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', source, '64M']);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 8M 3M', '-c', 'write -P 9 40M 100k', source]);
  const socket = path('copy.sock');
  const server = await PeerServer.start(t, 'qemu-nbd', ['-k', socket, '-f', 'qcow2', '-r', '-t', source], socket);
  const target = await served(t, newFile(64 * MIB));
  const from = await NbdClient.connect(`nbd+unix:///?socket=${socket}`);
  const to = await NbdClient.connect(target.uri);
  await copyDisk(from, to);
  await Promise.all([from.close(), to.close()]);
  await server.stop();
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', source, target.file]);
  const { blocks } = statSync(target.file);
  t.true(blocks * 512 < 5 * MIB, `${blocks * 512} bytes allocated`);
});

const program = new URL('../../bin/qemu-nbd', import.meta.url).pathname;

test('our qemu-nbd in the background, with --pid-file: qemu-io writes, qemu-img compares, qemu-nbd lists', async (t) => {
  if (!hasPrograms(t, 'qemu-io', 'qemu-img', 'qemu-nbd')) return;
  const [socket, pidFile, file] = [path('shim.sock'), path('shim.pid'), newFile(4 * MIB)];
  await mustRun(t, program, [
    '-t',
    '--fork',
    `--pid-file=${pidFile}`,
    '-k',
    socket,
    '-f',
    'raw',
    '-e',
    '2',
    '-x',
    'd',
    file,
  ]);
  t.teardown(() => process.kill(Number(readFileSync(pidFile, 'utf8'))));
  const uri = `nbd+unix:///d?socket=${socket}`;
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 5 0 1M', '-c', 'write -z 64k 64k', '-c', 'flush', uri]);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, file]);
  const [theirs, ours] = [
    await mustRun(t, 'qemu-nbd', ['-L', '-k', socket]),
    await mustRun(t, program, ['-L', '-k', socket]),
  ];
  const lines = theirs.split('\n').filter((line) => !/contexts|^ {3}/.test(line) && line !== '');
  for (const line of lines) t.true(ours.includes(`${line}\n`) || line.includes('flags:'), `${line}\nnot in\n${ours}`);
});

test('T16: a server without -t ends when its one client has left', async (t) => {
  const socket = path('once.sock');
  const child: ChildProcess = spawn(program, ['-k', socket, '-f', 'raw', newFile(MIB)], { stdio: 'ignore' });
  const exit = once(child, 'exit');
  let client: NbdClient | undefined;
  for (let tries = 0; tries < 200 && client === undefined; tries++) {
    client = await NbdClient.connect(`nbd+unix:///?socket=${socket}`).catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await client?.close();
  t.deepEqual(await exit, [0, null]);
});
