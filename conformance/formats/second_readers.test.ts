// Readers of images that are neither ours nor QEMU's: 7-Zip and libqcow. And strace, for which files ours opens.
import { randomBytes } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { createQcow2, createVhd, createVmdk, openImage } from '../../services/nbd/images/mod.ts';
import { hasPrograms, mustRun, run, scratch } from '../nbd/peers.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
const DISK_BYTES = 16 * MIB;
const MAIN = new URL('../../cli/main.ts', import.meta.url).pathname;

const made = {
  qcow2: (file: string) => createQcow2(file, { sizeBytes: DISK_BYTES }),
  vpc: (file: string) => createVhd(file, { sizeBytes: DISK_BYTES, forceSize: true }),
  vmdk: (file: string) => createVmdk(file, { sizeBytes: DISK_BYTES }),
};
const kinds = { qcow2: 'qcow', vpc: 'vhd', vmdk: 'vmdk' };

for (const format of ['qcow2', 'vpc', 'vmdk'] as const) {
  test(`7-Zip reads in our ${format} what we wrote`, async (t) => {
    if (!hasPrograms(t, '7zz')) return;
    const file = path(`disk-${format}.img`);
    await made[format](file);
    const model = Buffer.alloc(DISK_BYTES);
    const image = await openImage({ path: file, format }, { readOnly: false });
    for (const [at, bytes] of [
      [0, 512],
      [MIB + 100, 300_000],
      [9 * MIB, 2 * MIB],
      [DISK_BYTES - 1000, 1000],
    ] as const) {
      const data = randomBytes(bytes);
      data.copy(model, at);
      await image.write(at, data);
    }
    await image.flush();
    await image.close();
    const folder = path(`out-${format}`);
    mkdirSync(folder);
    await mustRun(t, '7zz', ['x', '-y', `-t${kinds[format]}`, `-o${folder}`, file]);
    const out = readdirSync(folder);
    t.is(out.length, 1, out.join());
    t.true(readFileSync(join(folder, out[0]!)).equals(model));
  });
}

test('libqcow finds in our qcow2 the version, the size and the backing file that we say', async (t) => {
  if (!hasPrograms(t, 'qcowinfo')) return;
  for (const version of [2, 3] as const) {
    const file = path(`info${version}.qcow2`);
    await createQcow2(file, { sizeBytes: DISK_BYTES, version });
    const said = await mustRun(t, 'qcowinfo', [file]);
    t.regex(said, new RegExp(`Format version\\s*: ${version}`));
    t.regex(said, /Media size\s*: .*16777216 bytes|Media size\s*: 16 MiB/);
  }
});

const hostile: readonly [what: string, make: (file: string) => Promise<void>][] = [
  [
    'a backing file',
    (file) => createQcow2(file, { sizeBytes: MIB, backing: { file: '/etc/hostname', format: 'raw' } }),
  ],
  ['a data file', (file) => createQcow2(file, { sizeBytes: MIB, dataFile: { file: '/etc/hostname', raw: true } })],
];
for (const [what, make] of hostile) {
  test(`CVE-2024-4467, CVE-2024-32498: info, check and map of an image with ${what} open no file but it`, async (t) => {
    if (!hasPrograms(t, 'strace')) return;
    const file = path(`hostile-${what.replaceAll(' ', '-')}.qcow2`);
    await make(file);
    for (const command of ['info', 'check', 'map']) {
      // Each test its own: they run side by side.
      const trace = path(`trace-${what.replaceAll(' ', '-')}-${command}`);
      const traced = ['-f', '-qq', '-e', 'trace=open,openat,openat2', '-o', trace];
      const { status, stderr } = await run('strace', [
        ...traced,
        process.execPath,
        MAIN,
        'img',
        command,
        '-f',
        'qcow2',
        file,
      ]);
      if (/ptrace.*(?:not permitted|denied)/i.test(stderr)) {
        t.log('SKIPPED: strace may not trace here');
        t.pass();
        return;
      }
      const opened = readFileSync(trace, 'latin1');
      t.true(opened.includes(file), `${command} ${status}: ${stderr}`);
      t.false(opened.includes('/etc/hostname'), command);
    }
  });
}

test('CVE-2015-5162: info and check of a small file that claims two petabytes take little time and memory', async (t) => {
  const small = path('small.qcow2');
  const huge = path('huge.qcow2');
  await createQcow2(small, { sizeBytes: MIB });
  await createQcow2(huge, { sizeBytes: 2 ** 51, clusterBytes: 2 << 20 });
  const script = path('limits.mjs');
  const url = JSON.stringify(MAIN);
  writeFileSync(
    script,
    `process.on('exit', () => process.stderr.write(JSON.stringify({ rss: process.resourceUsage().maxRSS, cpu: process.cpuUsage() })));
process.argv.splice(1, 1, ${url});
await import(${url});\n`,
  );
  for (const command of ['info', 'check']) {
    // What the program takes by itself, with an image of nothing: the first run also compiles it.
    await usage(t, [script, 'img', command, '-f', 'qcow2', small]);
    const base = await usage(t, [script, 'img', command, '-f', 'qcow2', small]);
    const used = await usage(t, [script, 'img', command, '-f', 'qcow2', huge]);
    t.true(used.rssKib < base.rssKib + 64 * 1024, `${command}: ${used.rssKib} KiB, a small image ${base.rssKib}`);
    t.true(used.cpuMs < base.cpuMs + 3000, `${command}: ${used.cpuMs} ms, a small image ${base.cpuMs}`);
  }
});

/** The most memory and the processor time that a Node has taken, by the last words of limits.mjs */
async function usage(t: ExecutionContext, args: readonly string[]): Promise<{ rssKib: number; cpuMs: number }> {
  const { status, stdout, stderr } = await run(process.execPath, args);
  t.is(status, 0, stdout + stderr);
  const { rss, cpu } = JSON.parse(/\{.*\}/.exec(stderr)![0]) as { rss: number; cpu: { user: number; system: number } };
  return { rssKib: rss, cpuMs: (cpu.user + cpu.system) / 1000 };
}
