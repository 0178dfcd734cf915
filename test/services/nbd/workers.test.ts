import {
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import {
  createQcow2,
  DEFAULT_NBD_LIMITS,
  ExportSet,
  type ImageSource,
  NbdClient,
  NbdListener,
  type NbdSessionSummary,
  openImage,
  RawImage,
  SessionPool,
  SessionWorkers,
  SharedSource,
} from '../../../services/nbd/mod.ts';
import { checkFromWorker } from '../../../services/nbd/workers/messages.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-workers-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const DISK_BYTES = 1 << 20;
let sockets = 0;

interface Served {
  readonly listener: NbdListener;
  readonly pool: SessionPool;
  readonly workers: SessionWorkers;
  readonly image: Awaited<ReturnType<typeof openImage>>;
  readonly uri: string;
  readonly ended: NbdSessionSummary[];
  readonly texts: string[];
}

interface Settings {
  readonly processes?: number;
  readonly readOnly?: boolean;
  readonly limits?: Partial<typeof DEFAULT_NBD_LIMITS>;
  readonly shared?: number;
  readonly offset?: number;
  /** What a worker is told to open, instead of what is served */
  readonly elsewhere?: string;
}

/** One raw image, or what `source` says, as `caisson nbd --processes=N` serves it. */
async function serve(t: ExecutionContext, source: ImageSource, settings: Settings = {}): Promise<Served> {
  const { processes = 2, readOnly = false, shared = 10 } = settings;
  const limits = { ...DEFAULT_NBD_LIMITS, ...settings.limits };
  const files = SharedSource.open(source, { readOnly });
  const image = await openImage(files.here, { readOnly });
  const raw = image instanceof RawImage ? image : undefined;
  const texts: string[] = [];
  const workers = new SessionWorkers({
    processes,
    limits,
    source: (first) => ({
      ...files.inheritedFrom(first),
      ...(settings.elsewhere === undefined ? {} : { path: settings.elsewhere }),
    }),
    options: { readOnly, unmap: false },
    offset: 0,
    served: { name: 'disk', writable: !readOnly, bitmaps: [], allocationDepth: false, writeThrough: false },
    fds: files.fds,
    lockHolder: raw?.lockHolder,
    onFlushFailure: () => raw?.distrustFlushes(),
    onText: (text) => texts.push(text),
  });
  if (raw !== undefined) raw.onFlushFailure = () => workers.flushFailed();
  const exports = new ExportSet();
  exports.add({ name: 'disk', image, writable: !readOnly });
  const ended: NbdSessionSummary[] = [];
  const pool = new SessionPool(exports, { shared, limits, workers, onSession: (summary) => ended.push(summary) });
  const path = join(directory, `${sockets++}.sock`);
  const listener = await NbdListener.listen({ type: 'unix', path }, exports, { pool });
  t.teardown(async () => {
    await listener.close();
    await workers.close();
    files.close();
    await image.close();
  });
  return { listener, pool, workers, image, uri: listener.uriOf('disk'), ended, texts };
}

function rawDisk(name: string): ImageSource & { path: string } {
  const path = join(directory, name);
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  return { path, format: 'raw' };
}

const filled = (byte: number, length = 4096): Uint8Array => new Uint8Array(length).fill(byte);

async function readAt(client: NbdClient, offset: number, length = 4096): Promise<Uint8Array> {
  const into = new Uint8Array(length);
  await client.read(offset, into);
  return into;
}

/** Until `isTrue`, for at most 10 s */
async function until(isTrue: () => boolean): Promise<void> {
  for (let tries = 0; tries < 1000 && !isTrue(); tries++) await new Promise((resolve) => setTimeout(resolve, 10));
}

test.serial('one client starts no process; a second one has its own, and both see one disk', async (t) => {
  const { uri, workers } = await serve(t, rawDisk('two.raw'));
  const first = await NbdClient.connect(uri);
  await first.write(0, filled(1));
  t.is(workers.size, 0);
  const second = await NbdClient.connect(uri);
  t.true(second.canMultiConn);
  t.deepEqual(await readAt(second, 0), filled(1));
  t.is(workers.size, 1);
  await second.write(4096, filled(2));
  t.deepEqual(await readAt(first, 4096), filled(2));
  // A third one goes to whoever has fewer: both have one, and this process comes first
  const third = await NbdClient.connect(uri);
  const fourth = await NbdClient.connect(uri);
  await Promise.all([readAt(third, 0), readAt(fourth, 0)]);
  t.is(workers.size, 1, 'two processes are enough');
  await Promise.all([first, second, third, fourth].map((client) => client.close()));
});

test.serial('T10: a flush on one connection covers what another process has answered', async (t) => {
  const source = rawDisk('flush.raw');
  const { uri, workers } = await serve(t, source);
  const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await there.write(0, filled(7, 65_536));
  await here.flush();
  await here.write(65_536, filled(8), { fua: true });
  await there.flush();
  t.is(workers.size, 1);
  t.deepEqual(new Uint8Array(readFileSync(source.path).subarray(0, 65_536)), filled(7, 65_536));
  await Promise.all([here.close(), there.close()]);
});

test.serial('T10: a flush that failed in one process fails in all, those that start later among them', async (t) => {
  const { uri, workers, image } = await serve(t, rawDisk('failed.raw'), { processes: 3 });
  const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await there.flush();
  const raw = image as RawImage;
  raw.distrustFlushes();
  raw.onFlushFailure!();
  await t.throwsAsync(here.flush(), { code: 'EIO' });
  await t.throwsAsync(there.flush(), { code: 'EIO' });
  const later = await NbdClient.connect(uri);
  t.is(workers.size, 2);
  await t.throwsAsync(later.flush(), { code: 'EIO' });
  await t.throwsAsync(later.write(0, filled(1), { fua: true }), { code: 'EIO' });
  await Promise.all([here.close(), there.close(), later.close()]);
});

test.serial(
  'a process that is killed takes its own sessions with it, and no others; the next client has a new one',
  async (t) => {
    const { uri, workers, ended, texts, pool } = await serve(t, rawDisk('killed.raw'));
    const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
    await there.write(0, filled(3));
    const [pid] = workers.pids;
    process.kill(pid!, 'SIGKILL');
    await t.throwsAsync(readAt(there, 0));
    t.deepEqual(await readAt(here, 0), filled(3), 'what was answered stays');
    await until(() => ended.length === 1);
    t.regex(ended[0]!.error!.message, /its process has ended \(SIGKILL\)/);
    t.regex(texts.join(), /SIGKILL/);
    t.is(pool.connections, 1);
    const again = await NbdClient.connect(uri);
    t.deepEqual(await readAt(again, 0), filled(3));
    t.is(workers.size, 1);
    t.not(workers.pids[0], pid);
    await Promise.all([here.close(), again.close()]);
  },
);

test.serial('processes that end again and again are not started any more, and everybody is served here', async (t) => {
  const { uri, workers } = await serve(t, rawDisk('crashes.raw'));
  const here = await NbdClient.connect(uri);
  for (let round = 0; round < 3; round++) {
    const there = await NbdClient.connect(uri);
    await readAt(there, 0);
    t.is(workers.size, 1, `round ${round}`);
    process.kill(workers.pids[0]!, 'SIGKILL');
    await t.throwsAsync(readAt(there, 0));
    await until(() => workers.size === 0);
  }
  const there = await NbdClient.connect(uri);
  await readAt(there, 0);
  t.is(workers.size, 0);
  await Promise.all([here.close(), there.close()]);
});

test.serial('T17: limits and counters hold over all processes', async (t) => {
  const { uri, pool, workers } = await serve(t, rawDisk('limits.raw'), { shared: 2 });
  const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await there.write(0, filled(1));
  await there.write(4096, filled(1));
  await readAt(here, 0);
  const { sessions, peers } = await pool.currentMetrics();
  t.deepEqual(
    sessions.map(({ phase, exportName, counters }) => [phase, exportName, counters.readBytes, counters.writtenBytes]),
    [
      ['transmission', 'disk', 4096, 0],
      ['transmission', 'disk', 0, 8192],
    ],
  );
  t.is(peers.unix!.writtenBytes, 8192);
  // The third one waits for its turn, wherever the others are
  const third = NbdClient.connect(uri);
  const early = await Promise.race([
    third.then(() => 'served'),
    new Promise((resolve) => setTimeout(() => resolve('waits'), 300)),
  ]);
  t.is(early, 'waits');
  await there.close();
  await (await third).close();
  t.is(workers.size, 1);
  t.is(pool.metrics().peers.unix!.writtenBytes, 8192, 'counted when it ended, too');
  await here.close();
});

test.serial('H15: shutting down finishes what is in flight in every process, and leaves none', async (t) => {
  const { uri, listener, workers, ended } = await serve(t, rawDisk('shutdown.raw'));
  const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  await readAt(there, 0);
  const [pid] = workers.pids;
  const writes = Array.from({ length: 16 }, (_, index) => there.write(index * 4096, filled(9)));
  const outcomes = Promise.allSettled(writes);
  await listener.close();
  t.is(ended.length, 2);
  await workers.close();
  t.throws(() => process.kill(pid!, 0), { code: 'ESRCH' });
  t.is((await outcomes).length, 16, 'each of them was answered or broke off');
  await Promise.allSettled([here.close(), there.close()]);
});

test.serial('every process serves the files that were opened at first, whatever happens to their names', async (t) => {
  const source = rawDisk('renamed.raw');
  const { uri, workers } = await serve(t, source);
  const here = await NbdClient.connect(uri);
  await here.write(0, filled(5));
  const other = rawDisk('other.raw');
  renameSync(other.path, source.path);
  const there = await NbdClient.connect(uri);
  t.is(workers.size, 1);
  t.deepEqual(await readAt(there, 0), filled(5));
  await Promise.all([here.close(), there.close()]);
});

test.serial('a read-only qcow2 image over a backing file is served by several processes', async (t) => {
  const [base, top] = [join(directory, 'base.raw'), join(directory, 'top.qcow2')];
  writeFileSync(base, filled(0x5a, DISK_BYTES));
  await createQcow2(top, { sizeBytes: DISK_BYTES, backing: { file: 'named by the command', format: 'raw' } });
  const source: ImageSource = { path: top, format: 'qcow2', backing: { path: base, format: 'raw' } };
  const { uri, workers } = await serve(t, source, { readOnly: true });
  const [here, there] = [await NbdClient.connect(uri), await NbdClient.connect(uri)];
  t.deepEqual(await readAt(there, 4096), filled(0x5a));
  t.is(workers.size, 1);
  t.true(there.readOnly);
  await t.throwsAsync(there.write(0, filled(1)));
  await Promise.all([here.close(), there.close()]);
});

test.serial('what a client sends right behind its handshake goes with its session', async (t) => {
  const { uri } = await serve(t, rawDisk('rest.raw'));
  const here = await NbdClient.connect(uri);
  // Clients that do not wait: many requests are on their way while the other process starts.
  const clients = await Promise.all(Array.from({ length: 4 }, () => NbdClient.connect(uri)));
  await Promise.all(
    clients.map(async (client, index) => {
      await Promise.all(
        Array.from({ length: 32 }, (_, at) => client.write((index * 32 + at) * 512, filled(index, 512))),
      );
      t.deepEqual(await readAt(client, index * 32 * 512, 32 * 512), filled(index, 32 * 512));
    }),
  );
  await Promise.all([here, ...clients].map((client) => client.close()));
});

test('a process that serves a read-only image reads no file beside it, whatever it is told', async (t) => {
  const outside = rawDisk('outside.raw').path;
  const source = rawDisk('confined.raw');
  const { uri, workers, texts } = await serve(t, source, { readOnly: true, elsewhere: outside });
  const here = await NbdClient.connect(uri);
  await readAt(here, 0);
  const there = await NbdClient.connect(uri);
  // Its process ends, and the first one serves the client.
  await readAt(there, 0);
  t.is(workers.size, 0);
  t.regex(texts.join(), /ERR_ACCESS_DENIED|restricted/);
  await Promise.all([here.close(), there.close()]);
});

/** How many descriptors of this process are open on a file. */
function descriptorsOf(path: string): number {
  const { dev, ino } = statSync(path);
  return readdirSync('/dev/fd').filter((fd) => {
    try {
      const facts = fstatSync(Number(fd));
      return facts.dev === dev && facts.ino === ino;
    } catch {
      return false;
    }
  }).length;
}

test('SharedSource: what is missing is told by open(2), and nothing stays open', (t) => {
  const path = join(directory, 'there.raw');
  writeFileSync(path, 'x');
  const source: ImageSource = { path, format: 'qcow2', backing: { path: join(directory, 'no'), format: 'raw' } };
  t.throws(() => SharedSource.open(source, { readOnly: true }), { code: 'ENOENT' });
  // Numbers of descriptors say nothing: other threads of the process open and close files, too
  t.is(descriptorsOf(path), 0);
  const fd = openSync(path, 'r');
  t.is(descriptorsOf(path), 1);
  closeSync(fd);
});

test('checkFromWorker: what a worker says is looked at before it is believed', (t) => {
  const counters = { requests: 1, refused: 0, failed: 0, readBytes: 2, writtenBytes: 0, maxInFlight: 1 };
  t.deepEqual(checkFromWorker({ kind: 'ended', id: 3, counters }), { kind: 'ended', id: 3, counters });
  const wrong = { ...counters, requests: -1, readBytes: 'many', toString: 1 };
  t.deepEqual(checkFromWorker({ kind: 'ended', id: 3, counters: wrong, error: 5 }), {
    kind: 'ended',
    id: 3,
    counters: { ...counters, requests: 0, readBytes: 0 },
  });
  t.is((checkFromWorker({ kind: 'ended', id: 3, error: 'x'.repeat(9999) }) as { error: string }).error.length, 4096);
  const sessions = [{ id: 1, counters, inFlight: 2, heldBytes: 3 }, { id: 'x' }, null];
  t.deepEqual(checkFromWorker({ kind: 'counted', query: 0, sessions }), {
    kind: 'counted',
    query: 0,
    sessions: [{ id: 1, counters, inFlight: 2, heldBytes: 3 }],
  });
  for (const bad of [
    undefined,
    null,
    1,
    'ready',
    {},
    { kind: 'start' },
    { kind: 'ended', id: -1 },
    { kind: 'counted' },
  ]) {
    t.is(checkFromWorker(bad), undefined);
  }
});
