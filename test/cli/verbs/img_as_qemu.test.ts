import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { inQemusWords } from '../../../cli/verbs/img/qemu_words.ts';
import { createQcow2, type ImageSource, openImage, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import { type ImgResult, runImg } from '../../fixtures/img_verb.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-as-qemu-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const CLUSTER = 65_536;
const at = (name: string): string => join(directory, name);

const img = (...args: string[]): Promise<ImgResult> => runImg(directory, ...args);

async function make(name: string, fill: Readonly<Record<number, number>>, ...under: string[]): Promise<void> {
  const [file] = under;
  const options = file === undefined ? {} : { backing: { file, format: 'qcow2' } };
  await createQcow2(at(name), { sizeBytes: 8 * CLUSTER, ...options });
  const image = await openImage(chain(name, ...under), { readOnly: false });
  for (const [cluster, byte] of Object.entries(fill)) {
    await image.write(Number(cluster) * CLUSTER, new Uint8Array(CLUSTER).fill(byte));
  }
  await image.flush();
  await image.close();
}

function chain(...names: string[]): ImageSource {
  const [name, ...under] = names;
  return { path: at(name!), format: 'qcow2', ...(under.length === 0 ? {} : { backing: chain(...under) }) };
}

/** First bytes of each cluster of an image with what is under it. */
async function read(name: string, ...under: string[]): Promise<number[]> {
  const image = await openImage(chain(name, ...under), { readOnly: true });
  const bytes = new Uint8Array(image.sizeBytes);
  await image.read(0, bytes);
  await image.close();
  return Array.from({ length: 8 }, (_, cluster) => bytes[cluster * CLUSTER]!);
}

test.serial('--qemu-img guesses formats and follows names in images; without it neither is done', async (t) => {
  await make('base.qcow2', { 1: 1 });
  await make('top.qcow2', { 2: 2 }, 'base.qcow2');
  const map = await img('--qemu-img', 'map', '--output=json', at('top.qcow2'));
  t.is(map.status, 0, map.said);
  t.deepEqual(
    (JSON.parse(map.out) as { start: number; depth: number; data: boolean }[])
      .filter(({ data }) => data)
      .map(({ start, depth }) => [start, depth]),
    [
      [CLUSTER, 1],
      [2 * CLUSTER, 0],
    ],
  );
  const chain = await img('--qemu-img', 'info', '--backing-chain', '--output=json', at('top.qcow2'));
  const names = (JSON.parse(chain.out) as { filename: string }[]).map(({ filename }) => filename);
  t.deepEqual(names, ['DIR/top.qcow2', 'DIR/base.qcow2']);
  const plain = await img('map', at('top.qcow2'));
  t.is(plain.status, 1);
  t.regex(plain.said, /^caisson img: .*never guessed/);
  t.regex((await img('map', '-f', 'qcow2', at('top.qcow2'))).said, /none was given/);
});

for (const [what, args, said] of [
  [
    'a file that is not there',
    ['info', at('none')],
    "Could not open 'DIR/none': Could not open 'DIR/none': No such file",
  ],
  ['a path through a file', ['info', `${process.execPath}/x`], "x': Not a directory\n"],
  [
    'a folder',
    ['info', '-f', 'raw', directory],
    "Could not open 'DIR': 'file' driver requires 'DIR' to be a regular file",
  ],
  ...[['snapshot', '-l'], ['rebase', '-u', '-b', 'x', '-F', 'raw'], ['commit'], ['amend', '-o', 'compat=0.10']].map(
    (words) =>
      [
        `a file that is not there to ${words[0]}`,
        [...words, at('none')],
        "Could not open 'DIR/none': Could not open 'DIR/none': No such file or directory\n",
      ] as const,
  ),
  [
    'a new image in a folder that is not there',
    ['create', '-f', 'raw', at('no/n'), '1M'],
    "qemu-img: DIR/no/n: Could not create 'DIR/no/n': No such file or directory\n",
  ],
  [
    'a copy into a folder that is not there',
    ['convert', '-f', 'raw', '-O', 'qcow2', at('base.qcow2'), at('no/n')],
    "qemu-img: DIR/no/n: error while converting qcow2: Could not create 'DIR/no/n': No such file or directory\n",
  ],
  [
    'a copy in the place of a folder',
    ['convert', '-f', 'raw', '-O', 'raw', at('base.qcow2'), directory],
    "qemu-img: DIR: error while converting raw: Could not create 'DIR': Is a directory\n",
  ],
  [
    'dd into a folder that is not there',
    ['dd', '-f', 'raw', `if=${at('base.qcow2')}`, `of=${at('no/n')}`],
    "qemu-img: DIR/no/n: error while creating output image: Could not create 'DIR/no/n': No such file or directory\n",
  ],
  [
    'a server that is not there',
    ['info', `nbd+unix:///?socket=${at('none')}`],
    "Could not open 'nbd+unix:///?socket=DIR/none': Failed to connect to 'DIR/none': No such file or directory\n",
  ],
  [
    'a socket with too long a path',
    ['info', `nbd+unix:///?socket=/${'x'.repeat(108)}`],
    `UNIX socket path '/${'x'.repeat(108)}' is too long\nPath must be less than 108 bytes\n`,
  ],
  ['a file of another format', ['info', '-f', 'qcow2', process.execPath], 'Image is not in qcow2 format'],
  ['a size that is none', ['create', '-f', 'qcow2', at('n'), '1kilobyte'], 'Invalid image size specified. You may use'],
  [
    'a size twice',
    ['create', '-f', 'qcow2', '-o', 'size=1M', at('n'), '1M'],
    'DIR/n: The image size must be specified only once',
  ],
  [
    'a version that is none',
    ['create', '-f', 'qcow2', '-o', 'compat=0.42', at('n'), '1M'],
    "Parameter 'version' does not accept value '0.42'",
  ],
  [
    'lazy refcounts in version 2',
    ['create', '-f', 'qcow2', '-o', 'compat=0.10,lazy_refcounts=on', at('n'), '1M'],
    'Lazy refcounts only supported with compatibility level 1.1',
  ],
  [
    'a disk that is too large',
    ['create', '-f', 'qcow2', at('n'), '1048576T'],
    "too large for file format 'qcow2' (try using",
  ],
  [
    'clusters of no power',
    ['create', '-f', 'qcow2', '-o', 'cluster_size=1234', at('n'), '1M'],
    'must be a power of two between 512 and 2048k',
  ],
  [
    'no format under it',
    ['create', '-f', 'qcow2', '-b', 'base.qcow2', at('n')],
    'Backing file specified without backing format',
  ],
  [
    'an empty name under it',
    ['create', '-f', 'qcow2', '-b', '', at('n'), '1M'],
    'Expected backing file name, got empty string',
  ],
  [
    'options with an empty part',
    ['create', '-f', 'qcow2', '-o', 'backing_file=a,', at('n'), '1M'],
    'Invalid option list: backing_file=a,',
  ],
  [
    'bitmaps into raw',
    ['convert', '--bitmaps', '-O', 'raw', at('base.qcow2'), at('n')],
    "Format driver 'raw' does not support bitmaps",
  ],
] as const) {
  test.serial(`--qemu-img says of ${what} what qemu-img says`, async (t) => {
    const result = await img('--qemu-img', ...args);
    t.is(result.status, 1);
    t.true(result.said.startsWith('qemu-img: '), result.said);
    t.true(result.said.includes(said), result.said);
    t.throws(() => statSync(at('n')));
  });
}

test.serial('--qemu-img names the features of an image that it does not know', async (t) => {
  await make('odd.qcow2', {});
  const bytes = readFileSync(at('odd.qcow2'));
  bytes[72] = 0xc0;
  writeFileSync(at('odd.qcow2'), bytes);
  t.is(
    (await img('--qemu-img', 'info', at('odd.qcow2'))).said,
    "qemu-img: Could not open 'DIR/odd.qcow2': Unsupported qcow2 feature(s): Unknown incompatible feature: c000000000000000\n",
  );
});

test.serial('convert -B copies what the source has by itself, and puts it over the other', async (t) => {
  await make('b0.qcow2', { 0: 9, 1: 1 });
  await make('b1.qcow2', { 1: 3, 4: 4 }, 'b0.qcow2');
  const args = ['-f', 'qcow2', '--backing-root', directory, '-O', 'qcow2', '-B', 'b0.qcow2', '-F', 'qcow2'];
  for (const compress of [[], ['-c']]) {
    t.deepEqual(await img('convert', ...args, ...compress, at('b1.qcow2'), at('b2.qcow2')), {
      status: 0,
      out: '',
      said: '',
    });
    t.deepEqual(await read('b2.qcow2', 'b0.qcow2'), [9, 3, 0, 0, 4, 0, 0, 0]);
    const image = await Qcow2Image.open(at('b2.qcow2'), {
      readOnly: true,
      backing: await openImage({ path: at('b0.qcow2'), format: 'qcow2' }, { readOnly: true }),
    });
    const own = await image.ownExtents(0, image.sizeBytes);
    await image.close();
    t.is(
      own.filter(({ flags }) => flags === 1).reduce((sum, { lengthBytes }) => sum + lengthBytes, 0),
      2 * CLUSTER,
    );
  }
});

test.serial('commit -b writes what all images above have, and leaves them', async (t) => {
  await make('c0.qcow2', { 0: 1 });
  await make('c1.qcow2', { 1: 2, 2: 2 }, 'c0.qcow2');
  await make('c2.qcow2', { 2: 3 }, 'c1.qcow2', 'c0.qcow2');
  const before = ['c1.qcow2', 'c2.qcow2'].map((name) => readFileSync(at(name)));
  t.regex((await img('--qemu-img', 'commit', '-b', 'x', at('c2.qcow2'))).said, /Did not find 'x' in the backing chain/);
  const done = await img('--qemu-img', 'commit', '-b', 'c0.qcow2', at('c2.qcow2'));
  t.deepEqual(done, { status: 0, out: 'Image committed.\n', said: '' });
  t.deepEqual(await read('c0.qcow2'), [1, 2, 3, 0, 0, 0, 0, 0]);
  t.deepEqual(
    ['c1.qcow2', 'c2.qcow2'].map((name) => readFileSync(at(name))),
    before,
  );
});

test.serial('rebase copies whole clusters that differ, and no others', async (t) => {
  await make('old.qcow2', { 0: 1, 1: 1, 3: 1 });
  await make('new.qcow2', { 1: 2, 2: 2, 3: 1 });
  await make('over.qcow2', {}, 'old.qcow2');
  t.is((await img('--qemu-img', 'rebase', '-b', 'new.qcow2', '-F', 'qcow2', at('over.qcow2'))).status, 0);
  const map = await img('--qemu-img', 'map', '--output=json', at('over.qcow2'));
  const runs = JSON.parse(map.out) as { start: number; length: number; depth: number; data: boolean }[];
  t.deepEqual(
    runs.filter(({ data }) => data).map(({ start, length, depth }) => [start / CLUSTER, length / CLUSTER, depth]),
    [
      [0, 3, 0],
      [3, 1, 1],
    ],
  );
  t.deepEqual(await read('over.qcow2', 'new.qcow2'), [1, 1, 0, 1, 0, 0, 0, 0]);
});

test.serial('rebase says by entries that zeroes hide what is behind the end of the old image', async (t) => {
  await createQcow2(at('short.qcow2'), { sizeBytes: 2 * CLUSTER });
  await make('longer.qcow2', { 1: 2, 5: 2 });
  await make('hides.qcow2', { 0: 1 }, 'short.qcow2');
  t.is((await img('--qemu-img', 'rebase', '-b', 'longer.qcow2', '-F', 'qcow2', at('hides.qcow2'))).status, 0);
  t.deepEqual(await read('hides.qcow2', 'longer.qcow2'), [1, 0, 0, 0, 0, 0, 0, 0]);
  const map = await img('--qemu-img', 'map', '--output=json', at('hides.qcow2'));
  const runs = JSON.parse(map.out) as { start: number; depth: number; zero: boolean; present: boolean }[];
  // Cluster 1 is data, as somebody may have written it; 5 takes no space.
  const own = runs.filter(({ depth, present }) => depth === 0 && present);
  t.deepEqual(
    own.map(({ start, zero }) => [start / CLUSTER, zero]),
    [
      [0, false],
      [5, true],
    ],
  );
});

test.serial('rebase over another image keeps what an image over nothing reads as zeroes', async (t) => {
  await make('under.qcow2', { 0: 1, 2: 1, 5: 1 });
  await make('alone.qcow2', { 0: 7 });
  t.is((await img('--qemu-img', 'rebase', '-b', 'under.qcow2', '-F', 'qcow2', at('alone.qcow2'))).said, '');
  t.deepEqual(await read('alone.qcow2', 'under.qcow2'), [7, 0, 0, 0, 0, 0, 0, 0]);
});

test.serial('bitmap actions are seen in the image', async (t) => {
  await make('n.qcow2', {});
  const bitmap = (...args: string[]) => img('bitmap', '-f', 'qcow2', ...args);
  const dirty = async (path: string): Promise<Record<string, [number, boolean]>> => {
    const image = await Qcow2Image.open(at(path), { readOnly: true });
    const found = Object.fromEntries(
      [...image.bitmaps].map(([name, { dirtyBytes, recording }]) => [name, [dirtyBytes / CLUSTER, recording] as const]),
    ) as Record<string, [number, boolean]>;
    await image.close();
    return found;
  };
  await bitmap('--add', '-g', '128k', at('n.qcow2'), 'a');
  await bitmap('--add', '--disable', at('n.qcow2'), 'off');
  const image = await openImage({ path: at('n.qcow2'), format: 'qcow2' }, { readOnly: false });
  await image.write(3 * CLUSTER, new Uint8Array(10).fill(1));
  await image.close();
  t.deepEqual(await dirty('n.qcow2'), { a: [2, true], off: [0, false] });
  t.is((await bitmap('--add', '--merge', 'a', at('n.qcow2'), 'copy')).said, '');
  t.is((await bitmap('--clear', at('n.qcow2'), 'a')).said, '');
  t.is((await bitmap('--disable', at('n.qcow2'), 'a')).said, '');
  t.is((await bitmap('--enable', at('n.qcow2'), 'off')).said, '');
  t.is((await bitmap('--merge', 'copy', '-b', at('n.qcow2'), '-F', 'qcow2', at('n.qcow2'), 'off')).status, 0);
  t.deepEqual(await dirty('n.qcow2'), { a: [0, false], off: [2, true], copy: [2, true] });
  t.is((await img('convert', '-f', 'qcow2', '-O', 'qcow2', '--bitmaps', at('n.qcow2'), at('o.qcow2'))).said, '');
  t.deepEqual(await dirty('o.qcow2'), { a: [0, false], off: [2, true], copy: [2, true] });
  t.is((await bitmap('--remove', at('n.qcow2'), 'copy')).said, '');
  t.deepEqual(Object.keys(await dirty('n.qcow2')), ['a', 'off']);
});

test.serial('bench sends what it says, and writes only with -w', async (t) => {
  writeFileSync(at('bench.raw'), Buffer.alloc(1 << 20, 7));
  const read64 = await img('bench', '-f', 'raw', '-c', '100', '-d', '8', at('bench.raw'));
  t.regex(
    read64.out,
    /^Sending 100 read requests, 4096 bytes each, 8 in parallel \(starting at offset 0, step size 4096\)\nRun completed in [\d.]+ seconds\.\n$/,
  );
  t.true(readFileSync(at('bench.raw')).every((byte) => byte === 7));
  const args = [
    '-w',
    '-c',
    '3',
    '-d',
    '1',
    '-s',
    '512',
    '-S',
    '64k',
    '-o',
    '1k',
    '--pattern',
    '90',
    '--flush-interval',
    '2',
  ];
  t.is((await img('bench', '-f', 'raw', ...args, at('bench.raw'))).status, 0);
  const bytes = readFileSync(at('bench.raw'));
  const written = [0, 1, 2].flatMap((index) => Array.from({ length: 512 }, (_, byte) => 1024 + index * 65_536 + byte));
  t.true(written.every((offset) => bytes[offset] === 90));
  t.is(bytes.filter((byte) => byte === 90).length, written.length);
});

test.serial('image options and names in JSON say what -f and --backing say', async (t) => {
  await make('i0.qcow2', { 0: 5 });
  await make('i1.qcow2', { 1: 6 }, 'i0.qcow2');
  const under = `backing.driver=qcow2,backing.file.filename=${at('i0.qcow2')}`;
  const options = `driver=qcow2,file.driver=file,file.filename=${at('i1.qcow2')},l2-cache-entry-size=4096,${under}`;
  const json = `json:${JSON.stringify({ driver: 'qcow2', file: { filename: at('i1.qcow2') }, backing: { driver: 'qcow2', file: { filename: at('i0.qcow2') } } })}`;
  for (const args of [['--image-opts', options], [json]]) {
    const { status, out, said } = await img('map', '--output=json', ...args);
    t.is(status, 0, said);
    t.is((JSON.parse(out) as { data: boolean }[]).filter(({ data }) => data).length, 2);
  }
});

test.serial('resize --preallocation gives what is new its place; amend -o size makes a disk larger', async (t) => {
  await make('p.qcow2', {});
  t.is((await img('resize', '-f', 'qcow2', '--preallocation=metadata', at('p.qcow2'), '+128k')).said, '');
  const after = JSON.parse((await img('check', '-f', 'qcow2', '--output=json', at('p.qcow2'))).out) as Record<
    string,
    number
  >;
  t.is(after['allocated-clusters'], 2);
  t.is((await img('amend', '-f', 'qcow2', '-o', 'size=1M', '-o', 'size=2M', at('p.qcow2'))).said, '');
  t.is(
    (JSON.parse((await img('info', '-f', 'qcow2', '--output=json', at('p.qcow2'))).out) as Record<string, number>)[
      'virtual-size'
    ],
    2 << 20,
  );
});

test.serial('amend -o size makes a disk smaller where that is meant, as qemu-img does without asking', async (t) => {
  await make('s.qcow2', {});
  const sizeNow = async (): Promise<unknown> =>
    (JSON.parse((await img('info', '-f', 'qcow2', '--output=json', at('s.qcow2'))).out) as Record<string, number>)[
      'virtual-size'
    ];
  await img('resize', '-f', 'qcow2', at('s.qcow2'), '8M');
  t.regex((await img('amend', '-f', 'qcow2', '-o', 'size=4M', at('s.qcow2'))).said, /less than the disk has/);
  t.is(await sizeNow(), 8 << 20);
  t.is((await img('amend', '-f', 'qcow2', '--force', '-o', 'size=4M', at('s.qcow2'))).said, '');
  t.is(await sizeNow(), 4 << 20);
  t.is((await img('--qemu-img', 'amend', '-o', 'size=2M', at('s.qcow2'))).said, '');
  t.is(await sizeNow(), 2 << 20);
  // Version 2 keeps only snapshots of the disk's size: the size goes first.
  await img('snapshot', '-f', 'qcow2', '-c', 'small', at('s.qcow2'));
  await img('resize', '-f', 'qcow2', at('s.qcow2'), '4M');
  const back = ['-o', 'compat=0.10,size=2M', at('s.qcow2')];
  t.regex((await img('amend', '-f', 'qcow2', '-o', 'compat=0.10', at('s.qcow2'))).said, /snapshots of another size/);
  t.is((await img('amend', '-f', 'qcow2', '--force', ...back)).said, '');
  t.is((await img('check', '-f', 'qcow2', at('s.qcow2'))).status, 0);
});

test.serial('create with data_file= makes that file, too, and convert fills it', async (t) => {
  writeFileSync(at('d.raw'), Buffer.alloc(4 * CLUSTER, 3));
  const made = await img(
    '--qemu-img',
    'convert',
    '-O',
    'qcow2',
    '-o',
    `data_file=${at('d.data')},data_file_raw=on`,
    at('d.raw'),
    at('d.qcow2'),
  );
  t.deepEqual(made, { status: 0, out: '', said: '' });
  t.deepEqual(readFileSync(at('d.data')), readFileSync(at('d.raw')));
  t.is((await img('--qemu-img', 'compare', at('d.qcow2'), at('d.raw'))).out, 'Images are identical.\n');
});

test.serial(
  'Q11 a data file that was moved is named by who opens the image, and its old name is taken out',
  async (t) => {
    const options = `data_file=${at('old.data')}`;
    t.is((await img('create', '-f', 'qcow2', '-q', '-o', options, at('moved.qcow2'), '1M')).said, '');
    renameSync(at('old.data'), at('new.data'));
    const words = `driver=qcow2,file.filename=${at('moved.qcow2')},data-file.filename=${at('new.data')}`;
    t.deepEqual(await img('--qemu-img', 'amend', '-o', 'data_file=', '--image-opts', words), {
      status: 0,
      out: '',
      said: '',
    });
    t.notRegex((await img('info', '-f', 'qcow2', at('moved.qcow2'))).out, /data file:/);
    t.is((await img('compare', '--image-opts', words, words)).out, 'Images are identical.\n');
  },
);

test.serial('a reader that has enough ends the command without a word', async (t) => {
  await make('long.qcow2', { 0: 1, 2: 1, 4: 1, 6: 1 });
  // biome-ignore lint/suspicious/noTemplateCurlyInString: the shell fills it in
  const script = '"$0" "$1" img map -f qcow2 --output=json "$2" | true; echo "${PIPESTATUS[0]}"';
  const main = join(import.meta.dirname, '..', '..', '..', 'cli', 'main.ts');
  const { stdout, stderr } = spawnSync('bash', ['-c', script, process.execPath, main, at('long.qcow2')], {
    encoding: 'utf8',
  });
  t.is(stderr, '');
  t.regex(stdout, /^(?:141|0)\n$/);
});

test.serial('convert joins several sources, compressed too, where they end inside clusters', async (t) => {
  const parts = [1000, 0, 3 * CLUSTER + 512, 70_000 * 3].map((length, index) => {
    const bytes = Buffer.alloc(Math.ceil(length / 512) * 512, index + 1);
    bytes.fill(0, Math.floor(bytes.length / 3), Math.floor(bytes.length / 2));
    writeFileSync(at(`part${index}.raw`), bytes);
    return bytes;
  });
  const want = Buffer.concat(parts);
  for (const [index, compress] of [[], ['-c']].entries()) {
    const joined = `joined${index}.qcow2`;
    const sources = parts.map((_, part) => at(`part${part}.raw`));
    const done = await img('convert', '-f', 'raw', '-O', 'qcow2', ...compress, ...sources, at(joined));
    t.deepEqual(done, { status: 0, out: '', said: '' });
    const image = await openImage(chain(joined), { readOnly: true });
    const got = Buffer.alloc(image.sizeBytes);
    await image.read(0, got);
    await image.close();
    t.true(got.equals(want));
  }
});

test.serial('Q13 Q17 measure looks at a snapshot, and counts bitmaps that are too large to be loaded', async (t) => {
  await make('m.qcow2', { 0: 1 });
  await img('snapshot', '-f', 'qcow2', '-c', 'first', at('m.qcow2'));
  const image = await openImage(chain('m.qcow2'), { readOnly: false });
  await image.write(CLUSTER, new Uint8Array(CLUSTER).fill(2));
  await image.close();
  const required = async (...args: string[]) => {
    const { out, said } = await img('measure', '-f', 'qcow2', '-O', 'qcow2', '--output=json', ...args, at('m.qcow2'));
    t.is(said, '');
    return JSON.parse(out) as { required: number; bitmaps: number };
  };
  t.is((await required()).required - (await required('-l', 'first')).required, CLUSTER);
  await img('bitmap', '-f', 'qcow2', '--add', '-g', '512', at('m.qcow2'), 'b');
  t.is((await required()).bitmaps, 3 * CLUSTER);
  const usage = await img('--qemu-img', 'measure');
  t.is(usage.said, 'qemu-img: Either --size N or one filename must be specified.\n');
});

test.serial('Q10 --qemu-img takes file: off a name, and shows what is left', async (t) => {
  const made = await img('--qemu-img', 'create', '-f', 'qcow2', `file:${at('a:b.qcow2')}`, '1M');
  t.regex(made.out, /^Formatting 'file:DIR\/a:b\.qcow2', /);
  t.true(statSync(at('a:b.qcow2')).isFile());
  t.regex((await img('--qemu-img', 'info', `file:${at('a:b.qcow2')}`)).out, /^image: DIR\/a:b\.qcow2\n/);
  t.is((await img('--qemu-img', 'dd', `if=file:${at('a:b.qcow2')}`, `of=file:${at('c.raw')}`, 'count=1')).status, 0);
  t.is(statSync(at('c.raw')).size, 512);
  // Without --qemu-img it is a name like others.
  t.is((await img('info', '-f', 'qcow2', `file:${at('a:b.qcow2')}`)).status, 1);
});

test.serial('Q17 convert --salvage copies what can be read, and tells where it could not', async (t) => {
  await make('damaged.qcow2', { 0: 1, 1: 2, 2: 3 });
  const bytes = readFileSync(at('damaged.qcow2'));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  // The second entry of the L2 table leads nowhere.
  const l2 = Number(view.getBigUint64(Number(view.getBigUint64(40))) & 0x00ff_ffff_ffff_fe00n);
  view.setBigUint64(l2 + 8, 0x8000_0100_0000_0000n);
  writeFileSync(at('damaged.qcow2'), bytes);
  const args = ['-f', 'qcow2', '-O', 'qcow2', at('damaged.qcow2'), at('saved.qcow2')];
  t.is((await img('convert', ...args)).status, 1);
  const saved = await img('convert', '--salvage', ...args);
  t.is(saved.status, 0, saved.said);
  t.regex(saved.said, /caisson img: warning: error while reading block status at offset \d+: .*behind the end/);
  t.is(saved.said.match(/error while reading offset/g)?.length, CLUSTER / 512);
  t.deepEqual(await read('saved.qcow2'), [1, 0, 3, 0, 0, 0, 0, 0]);
});

test('a full disk is told in the words of the command', (t) => {
  const full = new Error('Cannot write at byte 2097152: no space left');
  const words = (command: string) => inQemusWords(full, { command, format: 'raw' });
  t.is(words('convert'), 'error while writing at byte 2097152: No space left on device');
  t.is(words('dd'), 'error while writing to output image file: No space left on device');
  t.is(inQemusWords(new Error('ENOSPC: no space left on device, write')), 'Could not write: No space left on device');
});

test('a file that its user may not write to is not replaced, though its folder would allow that', (t) => {
  const folder = join(directory, 'open');
  mkdirSync(folder);
  for (const path of [directory, folder]) chmodSync(path, 0o777);
  const [source, target] = [join(folder, 'source.raw'), join(folder, 'kept.raw')];
  writeFileSync(source, new Uint8Array(512));
  writeFileSync(target, 'kept');
  chmodSync(target, 0o444);
  // Root may write to every file.
  const user = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  const main = new URL('../../../cli/main.ts', import.meta.url).pathname;
  const convert = ['convert', '-f', 'raw', '-O', 'raw', source, target];
  for (const [name, said] of [
    [
      '--qemu-img',
      `qemu-img: ${target}: error while converting raw: Could not create '${target}': Permission denied\n`,
    ],
    [undefined, `caisson img: Cannot make ${target}: permission denied (EACCES)\n`],
  ] as const) {
    const words = ['img', ...(name === undefined ? [] : [name]), ...convert];
    const { status, stderr } = spawnSync(process.execPath, [main, ...words], { ...user, encoding: 'utf8' });
    t.deepEqual([status, stderr], [1, said]);
  }
  t.is(readFileSync(target, 'utf8'), 'kept');
});
