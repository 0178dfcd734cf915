import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { cacheFolder, debianRepositories, makeExt4Disk, prepareDebian } from '../../../guests/debian/mod.ts';
import { RECIPE } from '../../../guests/debian/prepare.ts';

const folder = mkdtempSync(join(tmpdir(), 'caisson-prepare-'));
test.after.always(() => rmSync(folder, { recursive: true }));

test('debianRepositories() takes the main archive from the configured sources and no other repository', (t) => {
  const printed = [
    `'http://mirror.example/debian/dists/bookworm/InRelease' mirror_InRelease 0 `,
    `'http://mirror.example/debian/dists/bookworm-updates/InRelease' mirror_InRelease 0 `,
    `'http://mirror.example/debian-security/dists/bookworm-security/InRelease' mirror_InRelease 0 `,
    `'http://other.example/debian/dists/sid/InRelease' other_InRelease 0 `,
    `'https://vendor.example/apt/dists/cloud-sdk-bookworm/InRelease' vendor_InRelease 0 `,
    `'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror_Packages 0 `,
  ].join('\n');
  t.deepEqual(debianRepositories(printed), ['http://mirror.example/debian', 'http://other.example/debian']);
  t.deepEqual(debianRepositories(''), []);
});

test('cacheFolder() follows XDG_CACHE_HOME, but not a relative one', (t) => {
  t.is(cacheFolder({ XDG_CACHE_HOME: '/var/cache/me' }), '/var/cache/me/caisson');
  t.regex(cacheFolder({ XDG_CACHE_HOME: 'here' }), /\/\.cache\/caisson$/);
});

function cached(kernel: string, recipe = RECIPE): string {
  const cacheDir = mkdtempSync(join(folder, 'cache-'));
  const proof = (name: string, content: string) => {
    const sha256 = createHash('sha256').update(content).digest('hex');
    return { name, sizeBytes: content.length, sha256 };
  };
  const manifest = {
    recipe,
    version: '7',
    suite: 'forky',
    kernel: proof('vmlinuz-7', 'kernel'),
    initrd: proof('initrd-7', 'i'),
  };
  writeFileSync(join(cacheDir, 'manifest.json'), JSON.stringify(manifest));
  writeFileSync(join(cacheDir, 'vmlinuz-7'), kernel);
  writeFileSync(join(cacheDir, 'initrd-7'), 'i');
  return cacheDir;
}

test('prepareDebian() takes what is in the cache without a network', async (t) => {
  const cacheDir = cached('kernel');
  const guest = await prepareDebian({ cacheDir });
  const expected = { kernelPath: join(cacheDir, 'vmlinuz-7'), initrdPath: join(cacheDir, 'initrd-7') };
  t.deepEqual(guest, { ...expected, version: '7', suite: 'forky', cached: true });
  t.false(readdirSync(cacheDir).includes('lock'));
});

for (const [name, cacheDir] of [
  ['a kernel that was changed', cached('kernex')],
  ['a kernel that is too long', cached('kernel!')],
  ['a manifest of another recipe', cached('kernel', 1)],
] as const) {
  test(`prepareDebian() does not take ${name} from the cache`, async (t) => {
    const abort = AbortSignal.abort();
    await t.throwsAsync(prepareDebian({ cacheDir, signal: abort }), { name: 'AbortError' });
    t.false(readdirSync(cacheDir).includes('lock'), 'the lock is given back');
  });
}

test('prepareDebian() does not wait for a lock whose process is gone', async (t) => {
  const cacheDir = cached('kernel');
  writeFileSync(join(cacheDir, 'lock'), '4194305\n'); // above the largest pid that Linux gives
  t.true((await prepareDebian({ cacheDir })).cached);
});

test('prepareDebian() waits for a lock whose process lives, and can be aborted', async (t) => {
  const cacheDir = cached('kernel');
  writeFileSync(join(cacheDir, 'lock'), `${process.pid}\n`);
  const texts: string[] = [];
  const onProgress = ({ text }: { text: string }) => texts.push(text);
  await t.throwsAsync(prepareDebian({ cacheDir, onProgress, signal: AbortSignal.timeout(100) }), {
    name: 'AbortError',
  });
  t.deepEqual(texts, [`process ${process.pid} is preparing the same guest`]);
});

test('makeExt4Disk() makes a file system of that size and leaves an existing file alone', async (t) => {
  const path = join(folder, 'disk.img');
  const made = await makeExt4Disk(path, 16, 'demo').catch((error: unknown) => error as Error);
  if (made !== undefined) {
    t.log(`SKIPPED: ${made.message}`);
    t.pass();
    return;
  }
  t.is(statSync(path).size, 16 << 20);
  await t.throwsAsync(makeExt4Disk(path, 16, 'demo'), { code: 'EEXIST' });
  await t.throwsAsync(makeExt4Disk(join(folder, 'tiny.img'), 1, 'demo'), { instanceOf: RangeError });
});
