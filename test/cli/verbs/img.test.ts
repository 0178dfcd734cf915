import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { UsageError } from '../../../cli/usage_error.ts';
import { helpOf, parseGiven, parseSize, type Subcommand } from '../../../cli/verbs/img/grammar.ts';
import { infoCommand } from '../../../cli/verbs/img/info.ts';
import { sizeText } from '../../../cli/verbs/img/output.ts';
import { ImageProgress } from '../../../cli/verbs/img/progress.ts';
import { planTarget, replaceFile, targetHelp } from '../../../cli/verbs/img/target.ts';
import { imgVerb } from '../../../cli/verbs/img.ts';
import { createQcow2, createVhd, createVmdk, guessFormat } from '../../../services/nbd/images/mod.ts';
import { vhdxImage } from '../../fixtures/vhdx_image.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-img-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const MIB = 1 << 20;
const at = (name: string): string => join(directory, name);

const main = join(import.meta.dirname, '..', '..', '..', 'cli', 'main.ts');
function img(...args: string[]) {
  return spawnSync(process.execPath, [main, 'img', ...args], { encoding: 'utf8', cwd: directory });
}

/** The verb in this process: gives its exit status and what it said on standard error. */
async function inProcess(...args: string[]): Promise<{ status: number; said: string }> {
  const { write } = process.stderr;
  let said = '';
  process.stderr.write = ((text: string) => {
    said += text;
    return true;
  }) as typeof write;
  try {
    return { status: await imgVerb.run(args), said };
  } finally {
    process.stderr.write = write;
  }
}

test.before(async () => {
  writeFileSync(at('raw.img'), Buffer.alloc(MIB, 7));
  await createQcow2(at('disk.qcow2'), { sizeBytes: MIB });
  await createQcow2(at('top.qcow2'), { sizeBytes: MIB, backing: { file: 'raw.img', format: 'raw' } });
  await createVhd(at('disk.vhd'), { sizeBytes: MIB });
  await createVmdk(at('disk.vmdk'), { sizeBytes: MIB });
  writeFileSync(at('disk.vhdx'), vhdxImage());
});

for (const [what, args, status, message] of [
  ['no format', ['info', at('raw.img')], 1, 'the format of PATH is not given, and never guessed; add -f raw'],
  ['no format, but a look', ['info', at('disk.vmdk')], 1, 'it looks like vmdk: add -f vmdk if it is one'],
  ['a format that is none', ['info', '-f', 'qcow3', at('raw.img')], 1, 'did you mean qcow2'],
  ['a misspelt command', ['inof'], 1, 'Cannot inof: unknown; did you mean info'],
  ['a bench behind the end', ['bench', '-f', 'raw', '-o', '1M', at('raw.img')], 1, 'is behind the end'],
  ['a bench of more memory than it may', ['bench', '-f', 'raw', '-s', '1G', at('raw.img')], 1, 'bytes at once'],
  ['a bench of no requests', ['bench', '-f', 'raw', '-c', '0', at('raw.img')], 1, 'a number from 1'],
  ['a bitmap without an action', ['bitmap', '-f', 'qcow2', at('disk.qcow2'), 'b'], 1, '--merge is given'],
  ['a bitmap in raw', ['bitmap', '--add', '-f', 'raw', at('raw.img'), 'b'], 1, 'keep no bitmaps'],
  ['a bitmap that is not there', ['bitmap', '--clear', '-f', 'qcow2', at('disk.qcow2'), 'b'], 1, 'there is none'],
  [
    'a granularity that is none',
    ['bitmap', '--add', '-g', '3', '-f', 'qcow2', at('disk.qcow2'), 'b'],
    1,
    'a power of two',
  ],
  ['image options without a path', ['info', '--image-opts', 'driver=raw'], 1, 'file= is missing'],
  [
    'image options of a protocol',
    ['info', '--image-opts', 'driver=raw,file.driver=http,file.filename=x'],
    1,
    'driver=http: expected file',
  ],
  [
    'image options that are unknown',
    ['info', '--image-opts', `driver=raw,file.filename=x,fle=1`],
    1,
    'fle=: unknown for driver raw',
  ],
  ['a name in JSON that is none', ['info', 'json:{"driver":'], 1, 'expected json: and an object'],
  [
    'two formats',
    ['info', '-f', 'raw', '--image-opts', `driver=raw,file.filename=${at('raw.img')}`],
    1,
    'it says its driver',
  ],
  [
    'a commit into what is not in the chain',
    ['commit', '-f', 'qcow2', `--backing=raw:${at('raw.img')}`, '-b', 'x', at('top.qcow2')],
    1,
    'in the chain of',
  ],
  [
    'convert over a file without its format',
    ['convert', '-f', 'raw', '-O', 'qcow2', '-B', 'b', at('raw.img'), at('new')],
    1,
    'never guessed',
  ],
  [
    'convert of two over one',
    ['convert', '-f', 'raw', '-O', 'qcow2', '-B', at('raw.img'), '-F', 'raw', at('raw.img'), at('raw.img'), at('new')],
    1,
    '-B is for one SOURCE',
  ],
  [
    'bitmaps into raw',
    ['convert', '-f', 'qcow2', '--bitmaps', at('disk.qcow2'), at('new')],
    1,
    '--bitmaps is for -O qcow2',
  ],
  [
    'bitmaps of raw',
    ['convert', '-f', 'raw', '-O', 'qcow2', '--bitmaps', at('raw.img'), at('new')],
    1,
    'a SOURCE that is qcow2',
  ],
  [
    'an empty part of options',
    ['convert', '-f', 'raw', '-O', 'qcow2', '-o', 'compat=1.1,', at('raw.img'), at('new')],
    1,
    'expected key=value',
  ],
  ['a misspelt option', ['info', '--outptu=json', 'x'], 1, '--outptu is unknown; did you mean --output'],
  ['an unknown letter', ['info', '-Z', 'x'], 1, '-Z is unknown'],
  ['a value that is none', ['info', '-f', 'raw', '--output=jsno', at('raw.img')], 1, 'did you mean json'],
  ['an option without its value', ['info', '-f'], 1, '-f needs its FMT'],
  ['no file', ['info', '-f', 'raw'], 1, 'its FILE is missing'],
  ['a file too many', ['info', '-f', 'raw', 'a', 'b'], 1, 'b is too much'],
  [
    'a backing chain without a folder',
    ['info', '-f', 'qcow2', '--backing-chain', at('top.qcow2')],
    1,
    '--backing-root',
  ],
  ['a chain that nobody allowed', ['map', '-f', 'qcow2', at('top.qcow2')], 1, 'name it by --backing=FORMAT:PATH'],
  ['a chain without a format', ['map', '-f', 'qcow2', '--backing=raw.img', at('top.qcow2')], 1, 'a format, a colon'],
  ['a chain twice', ['map', '-f', 'raw', '--backing=raw:a', '--backing-root=.', 'x'], 1, 'exclude each other'],
  ['a backing file without its format', ['create', '-f', 'qcow2', '-b', 'raw.img', at('new')], 1, 'add -F qcow2'],
  ['a size that is none', ['create', at('new'), 'many'], 1, 'expected a size in bytes'],
  ['a cache mode that is none', ['convert', '-f', 'raw', '-t', 'unsave', at('raw.img'), at('new')], 1, 'unsafe'],
  ['no size', ['create', at('new')], 1, 'its SIZE is missing'],
  ['an image of a kind that is only read', ['create', '-f', 'vhdx', at('new'), '1M'], 1, 'it is only read'],
  [
    'an option of another format',
    ['create', '-f', 'vpc', '-o', 'cluster_size=4k', at('new'), '1M'],
    1,
    'cluster_size=: unknown',
  ],
  ['preallocation', ['create', '-f', 'vpc', '-o', 'preallocation=full', at('new'), '1M'], 1, 'expected off'],
  [
    'compression of raw',
    ['convert', '-c', '-f', 'raw', '-O', 'raw', at('raw.img'), at('new')],
    1,
    'raw has no compression',
  ],
  ['no target', ['convert', '-f', 'raw', at('raw.img')], 1, 'its TARGET is missing'],
  ['a commit of raw', ['commit', '-f', 'raw', at('raw.img')], 1, 'on top of nothing'],
  ['a commit into what was not said', ['commit', '-f', 'qcow2', at('disk.qcow2')], 1, 'what is under it is not said'],
  ['a rebase on nothing said', ['rebase', '-f', 'qcow2', at('top.qcow2')], 1, '-b is missing'],
  ['a rebase without a format', ['rebase', '-f', 'qcow2', '-b', 'x', at('top.qcow2')], 1, 'add -F qcow2'],
  ['an amend of nothing', ['amend', '-f', 'qcow2', at('disk.qcow2')], 1, 'its -o is missing'],
  ['an amend of what stays', ['amend', '-f', 'qcow2', '-o', 'cluster_size=4k', at('disk.qcow2')], 1, 'unknown'],
  ['a folder as VHD', ['info', '-f', 'vpc', directory], 1, 'not a regular file'],
  ['a folder as VHDX', ['info', '-f', 'vhdx', directory], 1, 'not a regular file'],
  ['a folder as VMDK', ['info', '-f', 'vmdk', directory], 1, 'not a regular file'],
  ['two actions at once', ['snapshot', '-f', 'qcow2', '-c', 'a', '-d', 'b', at('disk.qcow2')], 1, '-c and -d exclude'],
  ['snapshots of raw', ['snapshot', '-f', 'raw', '-c', 'a', at('raw.img')], 1, 'keep no snapshots'],
  ['another size of a VHD', ['resize', '-f', 'vpc', at('disk.vhd'), '+1M'], 1, 'keep their size'],
  ['repair of a VHD', ['check', '-f', 'vpc', '-r', 'all', at('disk.vhd')], 63, 'nothing to mend'],
  ['a smaller size', ['resize', '-f', 'raw', at('raw.img'), '-1k'], 1, 'add --shrink'],
  ['more taken than there is', ['resize', '-f', 'raw', '--shrink', at('raw.img'), '-2M'], 1, 'would leave -1048576'],
  ['an operand of dd that is none', ['dd', 'ibs=1'], 1, 'ibs=1 is unknown'],
  ['compare without a file, as trouble', ['compare', '-f', 'raw', at('raw.img')], 2, 'its FILE2 is missing'],
  ['compare of what is not there', ['compare', '-f', 'raw', at('raw.img'), at('none')], 2, 'ENOENT'],
  ['a file in no folder', ['create', '-f', 'qcow2', at('none/new'), '1M'], 1, 'none/new: no such file or directory'],
  ['check of raw', ['check', '-f', 'raw', at('raw.img')], 63, 'nothing to check'],
] as const) {
  test.serial(`refuses ${what} with exit status ${status}`, async (t) => {
    const result = await inProcess(...args);
    t.is(result.status, status);
    t.true(result.said.replace(at('raw.img'), 'PATH').includes(message), result.said);
    t.false(existsSync(at('new')));
  });
}

test('the command helps, for each of its own commands, too', (t) => {
  const overview = img('--help').stdout;
  for (const { name, help } of imgVerb.helpPages!) {
    t.true(overview.includes(`  ${name} `), name);
    t.true(help.startsWith(`caisson img ${name} `), name);
    t.regex(help, /\n {2}caisson img /, `${name} has no example`);
  }
  t.is(img('convert', '--help').stdout, imgVerb.helpPages!.find(({ name }) => name === 'convert')!.help);
});

test('info opens no file but the one that is named', (t) => {
  // The name leads to a FIFO: opening it would wait for ever.
  const result = spawnSync('mkfifo', [at('fifo')]);
  if (result.status !== 0) return t.pass();
  const made = img('create', '-u', '-f', 'qcow2', '-b', 'fifo', '-F', 'raw', 'fifo.qcow2', '1M');
  t.is(made.status, 0, made.stderr);
  const info = img('info', '-f', 'qcow2', '--output=json', 'fifo.qcow2');
  t.is(JSON.parse(info.stdout)['backing-filename'], 'fifo');
});

test('names inside images lead below --backing-root, and nowhere else', (t) => {
  const map = img('map', '-f', 'qcow2', '--output=json', '--backing-root=.', 'top.qcow2');
  t.deepEqual(JSON.parse(map.stdout), [
    { start: 0, length: MIB, depth: 1, present: true, zero: false, data: true, offset: 0 },
  ]);
  const elsewhere = img('map', '-f', 'qcow2', '--output=json', '--backing-root=/usr', 'top.qcow2');
  t.is(elsewhere.status, 1);
  t.regex(elsewhere.stderr, /not inside the folder that is allowed/);
});

test('convert goes through all formats and back', (t) => {
  const steps = [
    ['raw', 'raw.img', 'qcow2', 'a.qcow2', '-c'],
    ['qcow2', 'a.qcow2', 'vpc', 'b.vhd', '-o', 'force_size=on'],
    ['vpc', 'b.vhd', 'vmdk', 'c.vmdk', '-o', 'subformat=streamOptimized'],
    ['vmdk', 'c.vmdk', 'raw', 'd.raw'],
  ] as const;
  for (const [from, source, to, target, ...options] of steps) {
    const result = img('convert', '-f', from, '-O', to, ...options, source, target);
    t.is(result.status, 0, result.stderr);
  }
  t.true(readFileSync(at('d.raw')).equals(readFileSync(at('raw.img'))));
  t.deepEqual(
    readdirSync(directory).filter((name) => name.includes('partial')),
    [],
  );
});

test('rebase, commit and amend go over the images that are said', async (t) => {
  const info = (file: string) => JSON.parse(img('info', '-f', 'qcow2', '--output=json', file).stdout);
  const done = (...args: string[]) => {
    const { status, stderr } = img(...args);
    t.is(status, 0, stderr);
  };
  writeFileSync(at('one.raw'), Buffer.alloc(MIB, 1));
  writeFileSync(at('two.raw'), Buffer.concat([Buffer.alloc(MIB / 2, 1), Buffer.alloc(MIB / 2, 2)]));
  done('create', '-q', '-f', 'qcow2', '-b', 'one.raw', '-F', 'raw', 'chain.qcow2');
  done('rebase', '-f', 'qcow2', '--backing-root=.', '-b', 'two.raw', '-F', 'raw', 'chain.qcow2');
  t.is(info('chain.qcow2')['backing-filename'], 'two.raw');
  done('compare', '-q', '-f', 'qcow2', '-F', 'raw', '--backing-root=.', 'chain.qcow2', 'one.raw');
  done('commit', '-q', '-f', 'qcow2', '--backing=raw:two.raw', 'chain.qcow2');
  t.true(readFileSync(at('two.raw')).equals(readFileSync(at('one.raw'))));
  done('rebase', '-f', 'qcow2', '-u', '-b', 'not/there', '-F', 'qcow2', 'chain.qcow2');
  t.is(info('chain.qcow2')['backing-filename'], 'not/there');
  done('rebase', '-f', 'qcow2', '-u', '-b', '', 'chain.qcow2');
  t.is(info('chain.qcow2')['backing-filename'], undefined);
  done('amend', '-f', 'qcow2', '-o', 'lazy_refcounts=on', 'chain.qcow2');
  t.true(info('chain.qcow2')['format-specific'].data['lazy-refcounts']);
});

test('check follows the tables, and finds what is wrong', (t) => {
  t.is(img('check', '-f', 'vhdx', 'disk.vhdx').stdout, 'No errors were found on the image.\n');
  const bytes = vhdxImage();
  // The second block in the headers.
  new DataView(bytes.buffer).setBigUint64((2 << 20) + 8, 6n, true);
  writeFileSync(at('wrong.vhdx'), bytes);
  const wrong = img('check', '-f', 'vhdx', '--output=json', 'wrong.vhdx');
  t.is(wrong.status, 2);
  t.is(JSON.parse(wrong.stdout).corruptions, 1);
});

test('what was there stays as it is where the new file cannot be finished', async (t) => {
  writeFileSync(at('kept'), 'old');
  await t.throwsAsync(
    replaceFile(at('kept'), async (partial) => {
      writeFileSync(partial, 'half');
      throw new Error('no more');
    }),
    { message: 'no more' },
  );
  t.is(readFileSync(at('kept'), 'utf8'), 'old');
  symlinkSync('kept', at('link'));
  await replaceFile(at('link'), async (partial) => writeFileSync(partial, 'new'));
  t.is(readFileSync(at('kept'), 'utf8'), 'new');
  await t.throwsAsync(
    replaceFile(directory, async () => {}),
    { message: /it is a directory/ },
  );
});

test('sizes are read and written as qemu-img does', (t) => {
  for (const [text, bytes] of [
    ['512', 512],
    ['1k', 1024],
    ['1.5G', 1.5 * 2 ** 30],
    ['20T', 20 * 2 ** 40],
    ['10b', 10],
    ['1.k', 1024],
    ['1.3k', 1331],
    ['0.1M', 104_858],
    ['0x10', 16],
  ] as const) {
    t.is(parseSize(text, 'SIZE'), bytes);
  }
  for (const text of ['', 'x', '-1', '1x', '1e3', '9000P', '0x', ' 1', '1.5', '0.5b']) {
    t.throws(() => parseSize(text, 'SIZE'), { instanceOf: UsageError }, text);
  }
  t.deepEqual([0, 999, 1000, 1023, 10 * MIB, 1.5 * 2 ** 30].map(sizeText), [
    '0 B',
    '999 B',
    '0.977 KiB',
    '0.999 KiB',
    '10 MiB',
    '1.5 GiB',
  ]);
});

test('a size with a minus is no option, and letters may stand together', (t) => {
  const command = {
    ...infoCommand,
    options: [
      { short: 'p', help: '' },
      { short: 'q', help: '' },
      { short: 'f', value: 'X', help: '' },
    ],
  };
  const given = parseGiven(command as Subcommand, ['-pqfraw', 'disk', '-1G', '--', '--odd']);
  t.true(given.has('p') && given.has('q'));
  t.is(given.text('f'), 'raw');
  t.deepEqual(given.operands, ['disk', '-1G', '--odd']);
  t.throws(() => parseGiven(command as Subcommand, ['-f', 'a', '-f', 'b']), { message: /comes twice/ });
  t.regex(helpOf(infoCommand), /-f FMT/);
});

test('progress is a bar on a terminal, and the line of qemu-img elsewhere', (t) => {
  const lines: string[] = [];
  const write = (text: string) => lines.push(text);
  const plain = new ImageProgress(200, { write });
  plain.show(100);
  plain.end();
  t.deepEqual(lines, ['    (0.00/100%)\r', '    (100.00/100%)\r', '\n']);
  lines.length = 0;
  new ImageProgress(2048, { isTTY: true, write }).show(2048);
  t.is(lines.at(-1), `\r\x1b[K[${'#'.repeat(30)}] 100 % 2 KiB of 2 KiB`);
  t.notThrows(() => new ImageProgress(0, { write }).end());
});

test('guessFormat() looks for advice only', (t) => {
  const names = ['raw.img', 'disk.qcow2', 'disk.vhd', 'disk.vhdx', 'disk.vmdk', 'none'];
  t.deepEqual(
    names.map((name) => guessFormat(at(name), { footer: true })),
    [undefined, 'qcow2', 'vpc', 'vhdx', 'vmdk', undefined],
  );
});

test('planTarget() says what will be made, and targetHelp() what can be asked for', (t) => {
  const plan = (options: string, format: 'vpc' | 'qcow2' = 'vpc') =>
    planTarget({ format, sizeBytes: 10 * MIB, options });
  t.is(plan('').sizeBytes, 10_514_432);
  t.is(plan('force_size=on').sizeBytes, 10 * MIB);
  t.is(plan('size=20M,force_size=on').sizeBytes, 20 * MIB);
  t.throws(() => plan('backing_file=x', 'qcow2'), { message: /add -F/ });
  t.throws(() => plan('subformat=dynmic'), { instanceOf: UsageError });
  t.throws(() => targetHelp('vhdx'), { instanceOf: UsageError });
  t.true(targetHelp('qcow2').includes('compression_type=<str>'));
});

test('what stands in an image does not reach the terminal as control characters, by errors or by JSON', async (t) => {
  const evil = 'a\x9b31m\x7f';
  await createQcow2(at('evil.qcow2'), { sizeBytes: MIB, backing: { file: evil, format: 'raw' } });
  const { status, said } = await inProcess('convert', '-f', 'qcow2', at('evil.qcow2'), at('evil.raw'));
  t.is(status, 1);
  t.regex(said, /it has a backing file, "a\?31m\?", and none was given/);
  const info = img('info', '-f', 'qcow2', '--output=json', at('evil.qcow2'));
  t.false(/[^\P{Cc}\n]/u.test(info.stdout), JSON.stringify(info.stdout));
  t.is(JSON.parse(info.stdout)['backing-filename'], evil, 'and is the same value');
});
