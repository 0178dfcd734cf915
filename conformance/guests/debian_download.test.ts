import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { Apt, DebianError } from '../../guests/debian/mod.ts';

const BODY = Buffer.alloc(6 << 20, 'caisson ');
const SHA256 = createHash('sha256').update(BODY).digest('hex');
const DATE = 'Mon, 02 Nov 2026 10:00:00 GMT';

/** Serves BODY as a mirror does: dates and ranges; the first answer stops half-way, as a lost line does. */
async function mirror() {
  const ranges: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    const { range } = request.headers;
    ranges.push(range);
    const from = request.headers['if-range'] === DATE ? Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0) : 0;
    response.setHeader('Last-Modified', DATE);
    response.setHeader('Accept-Ranges', 'bytes');
    response.setHeader('Content-Length', BODY.length - from);
    if (from > 0) response.writeHead(206, { 'Content-Range': `bytes ${from}-${BODY.length - 1}/${BODY.length}` });
    if (ranges.length === 1) response.write(BODY.subarray(0, 3 << 20));
    else response.end(BODY.subarray(from));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  const uri = `http://127.0.0.1:${(server.address() as AddressInfo).port}/package.deb`;
  return { uri, ranges, close };
}

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; !condition(); tries++) {
    if (tries > 100) throw new Error('It did not happen within 10 s');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

test('Apt.fetchFile() continues an interrupted download where it stopped, and apt checks the whole', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-apt-'));
  const server = await mirror();
  t.teardown(() => {
    server.close();
    rmSync(folder, { recursive: true });
  });
  const target = join(folder, 'package.deb');
  const abort = new AbortController();
  const first = await Apt.open({ folder, signal: abort.signal }).catch((error: unknown) => error);
  if (first instanceof DebianError) {
    t.log(`SKIPPED: ${first.message}`);
    t.pass();
    return;
  }
  const interrupted = (first as Apt).fetchFile(server.uri, target, SHA256, () => undefined);
  await until(() => existsSync(`${target}.partial`) && statSync(`${target}.partial`).size >= 2 << 20);
  await until(() => existsSync(`${target}.partial.date`));
  abort.abort();
  await t.throwsAsync(interrupted, { name: 'AbortError' });
  t.false(existsSync(target), 'half a file must not look whole');

  const second = await Apt.open({ folder });
  await second.fetchFile(server.uri, target, SHA256, () => undefined);
  t.true(readFileSync(target).equals(BODY));
  t.regex(server.ranges[1] ?? '', /^bytes=[1-9]\d{6}-$/, 'the second request asks for the rest only');
});

test('Apt.fetchFile() refuses a file whose bytes are not those of the signed index', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-apt-'));
  const server = await mirror();
  server.ranges.push(undefined); // no interruption in this test
  t.teardown(() => {
    server.close();
    rmSync(folder, { recursive: true });
  });
  const apt = await Apt.open({ folder }).catch((error: unknown) => error);
  if (apt instanceof DebianError) {
    t.log(`SKIPPED: ${apt.message}`);
    t.pass();
    return;
  }
  const target = join(folder, 'package.deb');
  const other = createHash('sha256').update('other').digest('hex');
  await t.throwsAsync(
    (apt as Apt).fetchFile(server.uri, target, other, () => undefined),
    { code: 'ERR_DEBIAN_OFFLINE' },
  );
  t.false(existsSync(target));
});
