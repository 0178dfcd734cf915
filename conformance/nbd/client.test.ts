// Our client against other people's servers: qemu-nbd, nbdkit in several moods, nbd-server.
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { NbdBlockBackend, NbdClient, NbdError } from '../../services/nbd/mod.ts';
import { freePort, hasPrograms, listening, mustRun, PeerServer, scratch } from './peers.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
let count = 0;

/** Random data with a hole of 4 MiB in the middle, 12 MiB in all */
function newDisk(): { file: string; contents: Buffer } {
  const file = path(`disk${count++}.raw`);
  writeFileSync(file, randomBytes(4 * MIB));
  truncateSync(file, 8 * MIB);
  const contents = Buffer.concat([readFileSync(file), randomBytes(4 * MIB)]);
  writeFileSync(file, contents.subarray(8 * MIB), { flag: 'a' });
  return { file, contents };
}

interface Expected {
  readonly structured: boolean;
  readonly blockStatus: boolean;
}

/** Reads all, writes at odd places, flushes, zeroes, and compares with the file underneath. */
async function exercise(t: ExecutionContext, uri: string, contents: Buffer, expected: Expected): Promise<void> {
  for (const structured of [true, false]) {
    const client = await NbdClient.connect(uri, { structured });
    t.is(client.export.structured, expected.structured && structured);
    t.is(client.canBlockStatus, expected.blockStatus && structured);
    t.is(client.sizeBytes, contents.length);
    const all = Buffer.alloc(contents.length);
    await client.read(0, all);
    t.true(all.equals(contents), 'first read');
    await Promise.all(
      Array.from({ length: 100 }, async (_, index) => {
        const data = randomBytes(5000);
        contents.set(data, index * 60_000);
        await client.write(index * 60_000, data, { fua: index % 10 === 0 });
      }),
    );
    await client.flush();
    if (client.canWriteZeroes) {
      await client.writeZeroes(6 * MIB, MIB);
      contents.fill(0, 6 * MIB, 7 * MIB);
    }
    if (client.canBlockStatus) {
      let at = 0;
      while (at < contents.length) {
        const extents = await client.blockStatus(at, contents.length - at);
        t.true(extents.length > 0);
        for (const extent of extents) {
          if ((extent.flags & 2) !== 0) {
            t.true(contents.subarray(at, at + extent.lengthBytes).every((byte) => byte === 0));
          }
          at += extent.lengthBytes;
        }
      }
    }
    const disk = new NbdBlockBackend(client);
    await disk.read(0, all);
    t.true(all.equals(contents), 'second read');
    await client.close();
  }
}

test('qemu-nbd', async (t) => {
  if (!hasPrograms(t, 'qemu-nbd')) return;
  const { file, contents } = newDisk();
  const socket = path('qemu-nbd.sock');
  const args = ['-k', socket, '-f', 'raw', '-e', '4', '-t', '-x', 'disk', '--discard=unmap', file];
  const server = await PeerServer.start(t, 'qemu-nbd', args, socket);
  const uri = `nbd+unix:///disk?socket=${socket}`;
  t.deepEqual(await NbdClient.list(uri), [{ name: 'disk' }]);
  await exercise(t, uri, contents, { structured: true, blockStatus: true });
  await t.throwsAsync(NbdClient.connect(`nbd+unix:///nope?socket=${socket}`), { code: 'ERR_WIRE_STATE' });
  await server.stop();
  t.true(readFileSync(file).equals(contents));
});

const moods: [string, string[], Expected][] = [
  ['as it is', [], { structured: true, blockStatus: true }],
  ['without structured replies', ['--no-sr'], { structured: false, blockStatus: false }],
  ['with no handshake flags', ['--mask-handshake=0'], { structured: false, blockStatus: false }],
  ['with newstyle flags but no NO_ZEROES', ['--mask-handshake=1'], { structured: true, blockStatus: true }],
];
for (const [what, extra, expected] of moods) {
  test(`nbdkit ${what}`, async (t) => {
    if (!hasPrograms(t, 'nbdkit')) return;
    const { file, contents } = newDisk();
    const socket = path(`nbdkit${count}.sock`);
    const server = await PeerServer.start(t, 'nbdkit', ['-f', ...extra, '-U', socket, 'file', file], socket);
    await exercise(t, `nbd+unix:///?socket=${socket}`, contents, expected);
    await server.stop();
    t.true(readFileSync(file).equals(contents));
  });
}

test('nbdkit with errors: each comes back to its own request, and the connection lives', async (t) => {
  if (!hasPrograms(t, 'nbdkit')) return;
  const socket = path('nbdkit-error.sock');
  const args = ['-f', '-U', socket, '--filter=error', 'memory', '64M', 'error-rate=30%', 'error=ENOSPC'];
  const server = await PeerServer.start(t, 'nbdkit', args, socket);
  const client = await NbdClient.connect(`nbd+unix:///?socket=${socket}`);
  const results = await Promise.allSettled(
    Array.from({ length: 200 }, (_, index) => client.write(index * 4096, new Uint8Array(4096).fill(index))),
  );
  const failed = results.filter((result) => result.status === 'rejected');
  t.true(failed.length > 10 && failed.length < 190, `${failed.length} of 200`);
  t.true(failed.every((result) => result.reason instanceof NbdError && result.reason.code === 'ENOSPC'));
  let wrong = 0;
  for (const [index, result] of results.entries()) {
    const into = new Uint8Array(4096);
    for (;;) {
      try {
        await client.read(index * 4096, into);
        break;
      } catch (error) {
        if (!(error instanceof NbdError)) throw error;
      }
    }
    if (result.status === 'fulfilled' && into[0] !== index) wrong++;
  }
  t.is(wrong, 0);
  client.destroy();
  await server.stop();
});

test('nbdkit with delays: requests overlap', async (t) => {
  if (!hasPrograms(t, 'nbdkit')) return;
  const socket = path('nbdkit-delay.sock');
  const args = ['-f', '-U', socket, '--filter=delay', 'memory', '64M', 'rdelay=3'];
  const server = await PeerServer.start(t, 'nbdkit', args, socket);
  const client = await NbdClient.connect(`nbd+unix:///?socket=${socket}`);
  let done = 0;
  const reads = Array.from({ length: 10 }, async (_, index) => {
    await client.read(index * 4096, new Uint8Array(512));
    done++;
  });
  await client.write(1 << 20, new Uint8Array(512));
  t.is(done, 0, 'a write without a delay is answered before the ten reads that were asked first');
  await Promise.all(reads);
  await client.close();
  await server.stop();
});

test('nbdkit oldstyle is refused by name', async (t) => {
  if (!hasPrograms(t, 'nbdkit')) return;
  const socket = path('nbdkit-old.sock');
  const server = await PeerServer.start(t, 'nbdkit', ['-f', '-o', '-U', socket, 'memory', '1M'], socket);
  await t.throwsAsync(NbdClient.connect(`nbd+unix:///?socket=${socket}`), { message: /oldstyle/ });
  await server.stop();
});

test('a client that is destroyed fails what is under way', async (t) => {
  if (!hasPrograms(t, 'nbdkit')) return;
  const socket = path('nbdkit-killed.sock');
  const args = ['-f', '-U', socket, '--filter=delay', 'memory', '64M', 'rdelay=5'];
  const server = await PeerServer.start(t, 'nbdkit', args, socket);
  const client = await NbdClient.connect(`nbd+unix:///?socket=${socket}`);
  const reading = t.throwsAsync(client.read(0, new Uint8Array(512)), { instanceOf: NbdError });
  await new Promise((resolve) => setTimeout(resolve, 50));
  client.destroy(new Error('the operator has lost patience'));
  await reading;
  await client.closed;
  await server.stop();
});

test('nbd-server', async (t) => {
  if (!hasPrograms(t, 'nbd-server')) return;
  const { file, contents } = newDisk();
  const socket = path('nbd-server.sock');
  const config = path('nbd-server.conf');
  const disk = `[disk]\nexportname=${file}\nflush=true\nfua=true\ntrim=true\n`;
  writeFileSync(
    config,
    `[generic]\nunixsock=${socket}\nallowlist=true\nlistenaddr=127.0.0.1\nport=${await freePort()}\n${disk}`,
  );
  // It goes into the background: only so does it serve more than one connection.
  const pidFile = path('nbd-server.pid');
  await mustRun(t, 'nbd-server', ['-C', config, '-p', pidFile]);
  await listening(socket);
  t.teardown(() => process.kill(Number(readFileSync(pidFile, 'latin1'))));
  const uri = `nbd+unix:///disk?socket=${socket}`;
  t.deepEqual(
    (await NbdClient.list(uri)).map((summary) => summary.name),
    ['disk'],
  );
  await exercise(t, uri, contents, { structured: false, blockStatus: false });
  t.true(readFileSync(file).equals(contents));
});
