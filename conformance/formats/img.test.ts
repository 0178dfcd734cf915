// `caisson img` beside qemu-img: the same images, the JSON compared key by key, the exit statuses, and what each makes
// read by the other.

import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { hasPrograms, mustRun, type RunResult, run, scratch } from '../nbd/peers.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;
const DISK_BYTES = 20 * MIB;
const main = join(import.meta.dirname, '..', '..', 'cli', 'main.ts');

const img = (...args: string[]): Promise<RunResult> => run(process.execPath, [main, 'img', ...args]);
async function mustImg(t: ExecutionContext, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await img(...args);
  t.is(status, 0, `caisson img ${args.join(' ')}\n${stdout}${stderr}`);
  return stdout;
}

/** Written in whole pieces of 64 KiB: there every format has its holes at the same places */
const source = path('source.raw');
const fd = openSync(source, 'w');
writeSync(fd, randomBytes(2 * MIB), 0, 2 * MIB, 0);
writeSync(fd, Buffer.from('caisson '.repeat(MIB / 8)), 0, MIB, 8 * MIB);
ftruncateSync(fd, DISK_BYTES);
closeSync(fd);

interface Made {
  readonly name: string;
  readonly format: string;
  readonly file: string;
}
const images: Made[] = [];
test.before(async (t) => {
  if (!hasPrograms(t as unknown as ExecutionContext, 'qemu-img')) return;
  const make = async (name: string, format: string, ...options: string[]): Promise<void> => {
    const file = path(`${name}.img`);
    const from = ['convert', '-f', 'raw', '-O', format, ...options, source, file];
    const { status, stderr } = await run('qemu-img', from);
    if (status !== 0) throw new Error(stderr);
    images.push({ name, format, file });
  };
  await make('raw', 'raw');
  await make('qcow2', 'qcow2');
  await make('qcow2-old', 'qcow2', '-o', 'compat=0.10');
  await make('qcow2-small', 'qcow2', '-o', 'cluster_size=4k,lazy_refcounts=on,refcount_bits=1');
  await make('qcow2-zstd', 'qcow2', '-c', '-o', 'compression_type=zstd');
  await make('qcow2-extended', 'qcow2', '-o', 'extended_l2=on,cluster_size=128k');
  await make('vpc', 'vpc', '-o', 'force_size=on');
  await make('vpc-geometry', 'vpc');
  await make('vhdx', 'vhdx', '-o', 'block_size=1M');
  await make('vmdk', 'vmdk');
  await make('vmdk-stream', 'vmdk', '-o', 'subformat=streamOptimized');
  await run('qemu-img', ['snapshot', '-c', 'first', path('qcow2.img')]);
  await run('qemu-img', ['bitmap', '--add', '-f', 'qcow2', path('qcow2.img'), 'b0']);
});

/** A subtest for each image, told apart by its name where it fails. */
async function each(run: (image: Made) => Promise<void>, formats?: readonly string[]): Promise<void> {
  for (const image of images) if (formats === undefined || formats.includes(image.format)) await run(image);
}

test.serial('info --output=json has the keys and values of qemu-img', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  await each(async ({ name, format, file }) => {
    const ours = JSON.parse(await mustImg(t, 'info', '-f', format, '--output=json', file));
    const theirs = JSON.parse(await mustRun(t, 'qemu-img', ['info', '-f', format, '--output=json', file]));
    t.deepEqual(ours, theirs, name);
  });
});

test.serial('info for people is what qemu-img prints', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  await each(async ({ name, format, file }) => {
    const ours = await mustImg(t, 'info', '-f', format, file);
    t.is(ours, await mustRun(t, 'qemu-img', ['info', '-f', format, file]), name);
  });
});

test.serial('info --backing-chain gives the chain that qemu-img gives', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const top = path('top.qcow2');
  await mustImg(t, 'create', '-f', 'qcow2', '-b', 'qcow2.img', '-F', 'qcow2', top);
  const args = ['info', '-f', 'qcow2', '--backing-chain', '--output=json'];
  const theirs = JSON.parse(await mustRun(t, 'qemu-img', [...args, top]));
  const ours = JSON.parse(await mustImg(t, ...args, `--backing-root=${path('.')}`, top));
  t.deepEqual(ours, theirs);
  t.is((await img(...args, top)).status, 1);
});

interface MapEntry {
  start: number;
  length: number;
}
/** Entry by entry, but where one tells more parts than the other: cut at all their edges. */
function cutAt(entries: (MapEntry & Record<string, unknown>)[], edges: readonly number[]) {
  return entries.flatMap((entry) => {
    const cuts = edges.filter((edge) => edge > entry.start && edge < entry.start + entry.length);
    const bounds = [entry.start, ...cuts, entry.start + entry.length];
    return bounds.slice(0, -1).map((start, index) => ({
      ...entry,
      start,
      length: bounds[index + 1]! - start,
      ...(typeof entry.offset === 'number' ? { offset: entry.offset + start - entry.start } : {}),
    }));
  });
}

test.serial('map --output=json tells of every part what qemu-img tells', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  await mustImg(t, 'create', '-f', 'qcow2', '-b', 'qcow2.img', '-F', 'qcow2', path('map-top.qcow2'));
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 5 1M 1M', '-c', 'write -z 4M 1M', path('map-top.qcow2')]);
  const all = [...images, { name: 'chain', format: 'qcow2', file: path('map-top.qcow2') }];
  for (const { name, format, file } of all) {
    // QEMU calls all of a VHDX image data.
    if (format === 'vhdx') continue;
    const ours = JSON.parse(
      await mustImg(t, 'map', '-f', format, `--backing-root=${path('.')}`, '--output=json', file),
    );
    const theirs = JSON.parse(await mustRun(t, 'qemu-img', ['map', '-f', format, '--output=json', file]));
    const edges = [...ours, ...theirs].map((entry: MapEntry) => entry.start);
    const sorted = [...new Set(edges)].sort((a, b) => a - b);
    t.deepEqual(
      cutAt(ours, sorted),
      cutAt(
        theirs.filter((entry: MapEntry) => entry.length > 0),
        sorted,
      ),
      name,
    );
  }
});

test.serial('map for people is what qemu-img prints, of a part, too', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  for (const part of [[], ['--start-offset=1M', '--max-length=8M']]) {
    await each(
      async ({ name, format, file }) => {
        const ours = await img('map', '-f', format, ...part, file);
        const theirs = await run('qemu-img', ['map', '-f', format, ...part, file]);
        t.is(ours.status, theirs.status, name);
        if (theirs.status === 0) t.is(ours.stdout, theirs.stdout, `${name} ${part.join(' ')}`);
      },
      ['raw', 'vpc', 'qcow2'],
    );
  }
});

test.serial('measure gives the numbers of qemu-img', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const targets = [
    ['-O', 'raw'],
    ['-O', 'qcow2'],
    ['-O', 'qcow2', '-o', 'cluster_size=4k'],
    ['-O', 'qcow2', '-o', 'cluster_size=2M,refcount_bits=1'],
    ['-O', 'qcow2', '-o', 'extended_l2=on,preallocation=full'],
  ];
  for (const target of targets) {
    for (const size of ['0', '1', '20G']) {
      const args = ['measure', '--output=json', ...target, '--size', size];
      const theirs = await run('qemu-img', args);
      t.deepEqual(JSON.parse((await img(...args)).stdout), JSON.parse(theirs.stdout), args.join(' '));
    }
  }
  const args = ['measure', '--output=json', '-O', 'qcow2'];
  await each(async ({ name, format, file }) => {
    if (format === 'vhdx') return;
    const ours = JSON.parse(await mustImg(t, ...args, '-f', format, file));
    const theirs = JSON.parse(await mustRun(t, 'qemu-img', [...args, '-f', format, file]));
    t.deepEqual(ours, theirs, name);
  });
});

test.serial('compare gives the exit status and words of qemu-img', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const other = path('other.raw');
  const longer = path('longer.raw');
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', source, other]);
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 7 9M 512', other]);
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', source, longer]);
  await mustRun(t, 'qemu-img', ['resize', '-f', 'raw', longer, '+1M']);
  const cases = [
    [source, source],
    [source, other],
    [source, longer],
    [longer, source],
    [path('not there'), source],
  ];
  for (const [a, b] of cases) {
    for (const flags of [[], ['-s']]) {
      const args = ['compare', '-f', 'raw', '-F', 'raw', ...flags, a!, b!];
      const theirs = await run('qemu-img', args);
      const ours = await img(...args);
      t.is(ours.status, theirs.status, args.join(' '));
      t.is(ours.stdout, theirs.stdout, args.join(' '));
    }
  }
  await each(async ({ name, format, file }) => {
    t.is((await img('compare', '-f', 'raw', '-F', format, source, file)).status, 0, name);
  });
});

test.serial('check gives the exit status and keys of qemu-img', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  await each(
    async ({ name, format, file }) => {
      const args = ['check', '-f', format, '--output=json', file];
      const theirs = await run('qemu-img', args);
      const ours = await img(...args);
      // QEMU has no check for vpc; ours follows the table.
      t.is(ours.status, format === 'vpc' ? 0 : theirs.status, name);
      if (format !== 'vpc') t.deepEqual(JSON.parse(ours.stdout), JSON.parse(theirs.stdout), name);
    },
    ['vmdk', 'vhdx', 'vpc', 'qcow2'],
  );
});

const targets: readonly (readonly [format: string, ...options: string[]])[] = [
  ['raw'],
  ['raw', '-S', '0'],
  ['raw', '-S', '64k'],
  ['qcow2'],
  ['qcow2', '-c'],
  ['qcow2', '-c', '-o', 'compression_type=zstd,cluster_size=128k'],
  ['qcow2', '-o', 'compat=0.10,cluster_size=4k'],
  ['qcow2', '-o', 'extended_l2=on'],
  ['vpc'],
  ['vpc', '-o', 'subformat=fixed,force_size=on'],
  ['vmdk'],
  ['vmdk', '-o', 'subformat=streamOptimized'],
];
for (const [index, [format, ...options]] of targets.entries()) {
  test.serial(
    `convert -O ${[format, ...options].join(' ')}: qemu-img finds the same contents, and no error`,
    async (t) => {
      if (!hasPrograms(t, 'qemu-img')) return;
      const from = images[index % images.length]!;
      const file = path(`out${index}.img`);
      await mustImg(t, 'convert', '-f', from.format, '-O', format, ...options, from.file, file);
      const same = ['compare', '-f', from.format, '-F', format, from.file, file];
      t.regex(await mustRun(t, 'qemu-img', same), /Images are identical/);
      const { status, stderr } = await run('qemu-img', ['check', '-f', format, file]);
      t.true(status === 0 || stderr.includes('does not support checks'), stderr);
      // Once more, over what is there: replaced as a whole.
      await mustImg(t, 'convert', '-f', from.format, '-O', format, ...options, from.file, file);
      t.regex(await mustRun(t, 'qemu-img', same), /Images are identical/);
    },
  );
}

test.serial('convert of several sources, and into a target that is there', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const both = path('both.qcow2');
  const twice = path('twice.raw');
  await mustImg(t, 'convert', '-f', 'raw', '-O', 'qcow2', source, source, both);
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', source, source, twice]);
  t.regex(await mustRun(t, 'qemu-img', ['compare', '-F', 'raw', both, twice]), /identical/);
  const there = path('there.raw');
  writeFileSync(there, randomBytes(DISK_BYTES));
  await mustImg(t, 'convert', '-n', '-f', 'qcow2', '-O', 'raw', path('qcow2.img'), there);
  t.regex(await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, there]), /identical/);
});

test.serial('dd and resize do what qemu-img does', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const cut = async (operands: readonly string[], index: number): Promise<void> => {
    const [ours, theirs] = [path(`dd-ours${index}`), path(`dd-theirs${index}`)];
    await mustImg(t, 'dd', '-f', 'qcow2', '-O', 'raw', `if=${path('qcow2.img')}`, `of=${ours}`, ...operands);
    // QEMU 7.2 takes skip= off count=, which QEMU 9.1 mended: there the judge is dd itself.
    const both = operands.some((it) => it.startsWith('skip')) && operands.some((it) => it.startsWith('count'));
    if (both) await mustRun(t, 'dd', [`if=${source}`, `of=${theirs}`, ...operands]);
    else await mustRun(t, 'qemu-img', ['dd', '-f', 'raw', '-O', 'raw', `if=${source}`, `of=${theirs}`, ...operands]);
    await mustRun(t, 'cmp', [ours, theirs]);
  };
  await cut(['bs=1M', 'count=3', 'skip=1'], 0);
  await cut(['bs=512', 'count=5'], 1);
  await cut(['bs=3k', 'skip=2000'], 2);
  await cut(['bs=1M', 'skip=19', 'count=9'], 3);
  for (const [size, expected] of [
    ['+1M', 2 * MIB],
    ['-512k', 1.5 * MIB],
    ['3M', 3 * MIB],
  ] as const) {
    const file = path('resize.raw');
    writeFileSync(file, Buffer.alloc(size === '+1M' ? MIB : 2 * MIB));
    await mustImg(t, 'resize', '-f', 'raw', '--shrink', file, size);
    const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '-f', 'raw', '--output=json', file]));
    t.is(info['virtual-size'], expected);
  }
});

test.serial('check finds and mends a leak as qemu-img does', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const leaky = path('leaky.qcow2');
  const args = ['check', '-f', 'qcow2', '--output=json', leaky];
  const spoil = async (): Promise<void> => {
    await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', source, leaky]);
    // The refcount of a cluster behind all that are used: 2-byte refcounts, the block is the third cluster.
    const leak = openSync(leaky, 'r+');
    writeSync(leak, Buffer.of(0, 1), 0, 2, 2 * 65_536 + 2 * 60);
    ftruncateSync(leak, 61 * 65_536);
    closeSync(leak);
  };
  await spoil();
  const theirs = await run('qemu-img', args);
  const ours = await img(...args);
  t.is(theirs.status, 3);
  t.is(ours.status, 3);
  t.deepEqual(JSON.parse(ours.stdout), JSON.parse(theirs.stdout));
  const mended = JSON.parse(await mustImg(t, 'check', '-r', 'leaks', ...args.slice(1)));
  t.is(mended['leaks-fixed'], 1);
  t.is((await run('qemu-img', args)).status, 0);
});

test.serial('snapshot and convert -l, and resize of a qcow2, as qemu-img sees them', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
  const file = path('snapshots.qcow2');
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', source, file]);
  await mustImg(t, 'snapshot', '-f', 'qcow2', '-c', 'before', file);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 9 1M 3M', file]);
  await mustRun(t, 'qemu-img', ['snapshot', '-c', 'after', file]);
  const list = ['-l', file];
  t.is(await mustImg(t, 'snapshot', '-f', 'qcow2', ...list), await mustRun(t, 'qemu-img', ['snapshot', ...list]));
  const then = path('before.raw');
  await mustImg(t, 'convert', '-l', 'before', '-f', 'qcow2', '-O', 'raw', file, then);
  t.regex(await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, then]), /identical/);
  await mustImg(t, 'snapshot', '-f', 'qcow2', '-a', 'before', file);
  t.regex(await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', source, file]), /identical/);
  await mustImg(t, 'snapshot', '-f', 'qcow2', '-d', 'after', file);
  await mustImg(t, 'resize', '-f', 'qcow2', file, '+3M');
  const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', file]));
  t.is(info['virtual-size'], DISK_BYTES + 3 * MIB);
  t.deepEqual(
    info.snapshots.map((snapshot: { name: string }) => snapshot.name),
    ['before'],
  );
  await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', file]);
});

test.serial('rebase, commit and amend leave images that qemu-img reads the same, and finds sound', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
  const [other, top, flat] = [path('rebase-other.raw'), path('rebase-top.qcow2'), path('rebase-flat.raw')];
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', source, other]);
  await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 3 0 64k', '-c', 'write -P 4 12M 1M', other]);
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-b', 'source.raw', '-F', 'raw', top]);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 5 1M 70k', top]);
  await mustRun(t, 'qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', top, flat]);
  const same = async (): Promise<void> => {
    await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', top]);
    t.regex(await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', top, flat]), /identical/);
  };
  const root = `--backing-root=${path('.')}`;
  await mustImg(t, 'rebase', '-f', 'qcow2', root, '-b', 'rebase-other.raw', '-F', 'raw', top);
  await same();
  await mustImg(t, 'amend', '-f', 'qcow2', root, '-o', 'lazy_refcounts=on', top);
  await mustImg(t, 'commit', '-f', 'qcow2', root, top);
  await same();
  t.regex(await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', other, flat]), /identical/);
});

test.serial('create makes images that qemu-img calls the same', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  for (const [index, [format, ...options]] of [
    ['raw'],
    ['qcow2'],
    ['qcow2', '-o', 'cluster_size=2M,compat=0.10'],
    ['qcow2', '-o', 'refcount_bits=64,compression_type=zstd,lazy_refcounts=on'],
    ['vpc'],
    ['vpc', '-o', 'subformat=fixed'],
    ['vpc', '-o', 'force_size=on'],
  ].entries()) {
    const [ours, theirs] = [path(`create-ours${index}`), path(`create-theirs${index}`)];
    for (const size of ['1M', '33G', '1000000']) {
      // A raw file of 33 GiB is a hole; a fixed VHD as well.
      const made = await mustImg(t, 'create', '-f', format!, ...options, ours, size);
      const said = await mustRun(t, 'qemu-img', ['create', '-f', format!, ...options, theirs, size]);
      if (format !== 'qcow2') t.is(made.replace('ours', 'x'), said.replace('theirs', 'x'));
      const infoOf = async (file: string) => {
        const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '-f', format!, '--output=json', file]));
        return { ...info, filename: '', 'actual-size': 0 };
      };
      t.deepEqual(await infoOf(ours), await infoOf(theirs), `${format} ${options.join(' ')} ${size}`);
    }
  }
});
