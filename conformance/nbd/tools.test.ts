// Smaller programs around NBD: nbdfuse, nbd-client, nbdcopy's ways with zeroes, and nbdkit's filters under our client.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { ExportSet, NbdClient, NbdError, NbdListener, RawImage } from '../../services/nbd/mod.ts';
import { hasPrograms, mustRun, PeerServer, run, scratch } from './peers.ts';
import { addressOf, serve } from './served.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
let count = 0;

async function served(t: ExecutionContext, contents: Buffer, address: 'unix' | 'tcp' = 'unix') {
  const id = count++;
  const file = path(`disk${id}.raw`);
  writeFileSync(file, contents);
  const image = await RawImage.open(file, { readOnly: false });
  const offered = [
    { name: 'disk', description: 'a disk', writable: true },
    { name: 'other', writable: false },
  ];
  const { uriOf, close } = await serve(t, image, offered, addressOf(address, path(`s${id}`)));
  return { file, uri: uriOf('disk'), close };
}

test('nbdfuse shows our export as a file that is read, written and synced', async (t) => {
  if (!hasPrograms(t, 'nbdfuse')) return;
  const contents = randomBytes(4 * MIB);
  const server = await served(t, contents);
  const folder = path('mount');
  mkdirSync(folder);
  const child = spawn('nbdfuse', [folder, server.uri], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  const exit = new Promise<number | null>((resolve) => child.once('exit', resolve));
  t.teardown(async () => {
    await run('umount', [folder]);
    child.kill();
    await exit;
  });
  const shown = `${folder}/nbd`;
  for (let tries = 0; tries < 100 && child.exitCode === null; tries++) {
    const bytes = await mounted(shown);
    if (bytes > 0) break;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  if (child.exitCode !== null) {
    t.log(`SKIPPED: nbdfuse cannot mount here: ${said.trim()}`);
    t.pass();
    return;
  }
  // dd, not Node: a file system that waits for this process must not be waited for by it.
  const copy = path('fuse-copy.raw');
  await mustRun(t, 'dd', [`if=${shown}`, `of=${copy}`, 'bs=64k']);
  t.true(readFileSync(copy).equals(contents));
  const change = path('change.raw');
  writeFileSync(change, Buffer.alloc(100_000, 7));
  await mustRun(t, 'dd', [`if=${change}`, `of=${shown}`, 'bs=50000', 'seek=5', 'conv=notrunc,fsync']);
  await mustRun(t, 'umount', [folder]);
  t.is(await exit, 0);
  await server.close();
  contents.fill(7, 250_000, 350_000);
  t.true(readFileSync(server.file).equals(contents));
});

/** The size of what is mounted there; 0 while nothing is. */
async function mounted(file: string): Promise<number> {
  const { status, stdout } = await run('stat', ['-c', '%s', file]);
  return status === 0 ? Number(stdout) : 0;
}

test('nbd-client lists our exports', async (t) => {
  if (!hasPrograms(t, 'nbd-client')) return;
  const server = await served(t, Buffer.alloc(MIB), 'tcp');
  const port = /:(\d+)\//.exec(server.uri)![1]!;
  const { stdout, stderr } = await run('nbd-client', ['-l', '127.0.0.1', port]);
  t.regex(stdout, /^disk/m, stderr);
  t.regex(stdout, /^other/m);
});

test('nbdcopy leaves holes as holes on our server, with and without --destination-is-zero', async (t) => {
  if (!hasPrograms(t, 'nbdcopy')) return;
  const source = path('sparse.raw');
  writeFileSync(source, randomBytes(MIB));
  truncateSync(source, 32 * MIB);
  for (const zero of [true, false]) {
    const server = await served(t, Buffer.alloc(0));
    await server.close();
    truncateSync(server.file, 32 * MIB);
    if (!zero) writeFileSync(server.file, Buffer.alloc(32 * MIB, 9));
    const image = await RawImage.open(server.file, { readOnly: false, unmap: true });
    const exports = new ExportSet();
    exports.add({ name: '', image, writable: true });
    const listener = await NbdListener.listen({ type: 'unix', path: path(`z${count++}`) }, exports);
    await mustRun(t, 'nbdcopy', [...(zero ? ['--destination-is-zero'] : []), '--flush', source, listener.uri]);
    await listener.close();
    await image.close();
    t.true(readFileSync(server.file).equals(readFileSync(source)));
    if (zero) t.true(statSync(server.file).blocks * 512 < 3 * MIB, 'holes were filled');
  }
});

test('our client under nbdkit’s block size policy: what does not fit is told before it is sent, or comes back', async (t) => {
  if (!hasPrograms(t, 'nbdkit')) return;
  const socket = path('policy.sock');
  const policy = ['blocksize-minimum=4096', 'blocksize-preferred=4096', 'blocksize-maximum=65536'];
  const args = ['-f', '-U', socket, '--filter=blocksize-policy', 'memory', '1M', ...policy];
  const server = await PeerServer.start(t, 'nbdkit', [...args, 'blocksize-error-policy=error'], socket);
  const client = await NbdClient.connect(`nbd+unix:///?socket=${socket}`);
  const data = randomBytes(256 << 10);
  await client.write(4096, data);
  const into = Buffer.alloc(data.length);
  await client.read(4096, into);
  t.true(into.equals(data), 'requests above the maximum are split');
  const odd = await t.throwsAsync(client.write(1, new Uint8Array(512)), { instanceOf: NbdError });
  t.is(odd?.code, 'EINVAL');
  await client.read(0, new Uint8Array(4096));
  await client.close();
  await server.stop();
});

for (const [what, filters, parameters] of [
  ['retries behind errors', ['retry', 'error'], ['error-rate=20%', 'retry-delay=1']],
  ['a copy-on-write layer, a cache and read-ahead', ['cow', 'cache', 'readahead'], []],
  ['no extents, no zeroes, one connection', ['noextents', 'nozero', 'noparallel'], []],
  ['a rate limit', ['rate'], ['rate=200M']],
] as const) {
  test(`our client reads what it wrote through nbdkit with ${what}`, async (t) => {
    if (!hasPrograms(t, 'nbdkit')) return;
    t.timeout(90_000);
    const socket = path(`filter${count++}.sock`);
    const chain = filters.map((name) => `--filter=${name}`);
    const server = await PeerServer.start(
      t,
      'nbdkit',
      ['-f', '-U', socket, ...chain, 'memory', '8M', ...parameters],
      socket,
    );
    const client = await NbdClient.connect(`nbd+unix:///?socket=${socket}`);
    const model = Buffer.alloc(8 * MIB);
    const writes = Array.from({ length: 60 }, (_, index) => {
      const data = randomBytes(60_000);
      data.copy(model, index * 100_000 + 3);
      return client.write(index * 100_000 + 3, data);
    });
    await Promise.all(writes);
    await client.flush();
    const into = Buffer.alloc(8 * MIB);
    await client.read(0, into);
    t.true(into.equals(model));
    await client.close();
    await server.stop();
  });
}
