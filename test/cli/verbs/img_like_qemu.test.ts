import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { inspectVmdk } from '../../../services/nbd/images/mod.ts';
import { type ImgResult, runImg } from '../../fixtures/img_verb.ts';

// What qemu-img answered otherwise than we did, once both were given the same command lines.

const directory = mkdtempSync(join(tmpdir(), 'caisson-like-qemu-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const at = (name: string): string => join(directory, name);
const img = (...args: string[]): Promise<ImgResult> => runImg(directory, '--qemu-img', ...args);

test.before(async () => {
  for (const args of [
    ['-f', 'raw', at('r'), '4M'],
    ['-f', 'qcow2', at('q'), '4M'],
    ['-f', 'qcow2', '-b', 'q', '-F', 'qcow2', at('t')],
    ['-f', 'qcow2', '-o', 'compat=0.10', at('old'), '4M'],
    ['-f', 'vpc', '-o', 'subformat=fixed', at('v'), '4M'],
    ['-f', 'vmdk', at('k'), '4M'],
  ]) {
    await img('create', '-q', ...args);
  }
});

const REFUSED: readonly (readonly [args: readonly string[], said: string])[] = [
  [['check', at('none')], "Could not open 'DIR/none': Could not open 'DIR/none': No such file or directory"],
  [['snapshot', '-c', 'a', at('none')], "Could not open 'DIR/none': Could not open 'DIR/none': No such file"],
  [['info', at('q'), at('r')], "Expecting one image file name\nTry 'qemu-img --help' for more information"],
  [['info', '-x', at('q')], "unrecognized option '-x'"],
  [['info', '-f'], "missing argument for option '-f'"],
  [['info', '-f', 'nope', at('q')], "Could not open 'DIR/q': Unknown driver 'nope'"],
  [['compare', '-f', 'qcow2', '-F', 'qcow2', at('q'), at('r')], "Could not open 'DIR/r': Image is not in qcow2 format"],
  [['snapshot', '-c', 'a', at('r')], "Could not create snapshot 'a': -95 (Operation not supported)"],
  [['snapshot', '-a', 'b', at('q')], "'b': Failed to load snapshot: No such file or directory"],
  [['snapshot', '-d', 'b', at('q')], "Could not delete snapshot 'b': snapshot not found"],
  [['bitmap', '--clear', at('q'), 'a'], "Operation clear on bitmap a failed: Dirty bitmap 'a' not found"],
  [['bitmap', '--add', '-g', '1000', at('q'), 'a'], 'failed: Granularity must be power of 2 and at least 512'],
  [['resize', at('q'), '10e3'], "Parameter 'size' expects a non-negative number below 2^64"],
  [['nope'], 'Command not found: nope'],
  [['create', '-f', 'nope', at('n'), '1M'], "Unknown file format 'nope'"],
  [['create', '-f', 'raw', at('n'), '1.5'], 'Invalid image size specified. You may use k, M, G'],
  [['create', '-f', 'qcow2', '-o', 'refcount_bits=16k', at('n'), '1M'], "Parameter 'refcount_bits' expects a number"],
  [['create', '-f', 'qcow2', '-o', 'lazy_refcounts=1', at('n'), '1M'], "'lazy_refcounts' expects 'on' or 'off'"],
  [['create', '-f', 'qcow2', '-o', 'nope=1', at('n'), '1M'], "DIR/n: Invalid parameter 'nope'"],
  [['create', '-f', 'qcow2', '-o', 'compat=0.10,compression_type=zstd', at('n'), '1M'], 'Non-zlib compression type'],
  [['create', '-f', 'qcow2', '-b', 'none', '-F', 'qcow2', at('n'), '1M'], "Could not open 'DIR/none': No such file"],
  [['create', '-f', 'qcow2', '-b', 'n', '-F', 'qcow2', at('n'), '1M'], 'with the same filename as the backing file'],
  [['create', '-f', 'qcow2', '-F', 'qcow2', at('n'), '1M'], 'Backing format cannot be used without backing file'],
  [['convert', '-S', '1000', at('q'), at('n')], 'Invalid buffer size for sparse output specified. Valid sizes are'],
  [['convert', '-m', '17', at('q'), at('n')], 'Allowed number of coroutines is between 1 and 16'],
  [['convert', '-r', 'abc', at('q'), at('n')], 'Invalid rate limit specified.'],
  [['convert', '-T', 'nope', at('q'), at('n')], 'Invalid source cache option: nope'],
  [['convert', '-t', 'nope', at('q'), at('n')], 'Invalid cache option: nope'],
  [['convert', '--target-is-zero', at('q'), at('n')], '--target-is-zero requires use of -n flag'],
  [['convert', '--skip-broken-bitmaps', '-O', 'qcow2', at('q'), at('n')], 'requires --bitmaps'],
  [['convert', '--bitmaps', '-O', 'qcow2', '-o', 'compat=0.10', at('q'), at('n')], 'does not support bitmaps'],
  [
    ['convert', '-c', '-O', 'qcow2', '-o', 'preallocation=metadata', at('q'), at('n')],
    'not supported at the same time',
  ],
  [['convert', '-F', 'qcow2', '-O', 'qcow2', at('t'), at('n')], 'Backing format cannot be used without backing file'],
  [['convert', '-O', 'qcow2', at('q'), at('q')], 'Is another process using the image [DIR/q]?'],
  [['convert', '-n', '-O', 'qcow2', at('t'), at('q')], 'Is another process using the image [DIR/q]?'],
  [['dd', `if=${at('q')}`, `of=${at('q')}`], 'Is another process using the image [DIR/q]?'],
  [['dd', `if=${at('q')}`, `of=${at('n')}`, 'bs=3G'], 'Invalid bs specified. Must be between 1 and 2147483647.'],
  [['rebase', '-b', 'q', '-F', 'qcow2', at('q')], 'Is another process using the image [DIR/q]?'],
  [['rebase', '-b', 't', '-F', 'qcow2', at('q')], 'Is another process using the image [DIR/q]?'],
  [['rebase', '-u', '-b', 'r', '-F', 'nope', at('t')], "Invalid format name: 'nope'"],
  [['commit', '-t', 'nope', at('t')], 'Invalid cache option: nope'],
  [['commit', '-r', 'abc', at('t')], 'Invalid rate limit specified.'],
  [['commit', at('q')], 'Image does not have a backing file'],
  [['amend', '-o', 'compat=', at('q')], 'Unknown compatibility level '],
  [['amend', '-o', 'backing_fmt=raw', at('t')], 'Cannot amend the backing file'],
  [['amend', '-o', 'size=1000', at('q')], 'The new size must be a multiple of 512'],
  [['resize', at('q'), '+1'], 'The new size must be a multiple of 512'],
  [['resize', at('q'), '1M'], 'Use the --shrink option to perform a shrink operation.'],
  [['resize', '--shrink', at('q'), '0'], 'New image size must be positive'],
  [['resize', at('k'), '8M'], 'Image format driver does not support resize'],
  [['measure', '-O', 'qcow2', '--size', '7P'], 'The image size is too large (try using a larger cluster size)'],
  [['measure', '-O', 'qcow2', '-o', 'compat=3', '--size', '1M'], 'compatibility level'],
  [['measure', '-O', 'qcow2', '-o', 'extended_l2=on,cluster_size=4k', '--size', '1M'], 'of at least 16384 bytes'],
  [['measure', '-O', 'qcow2', '-o', 'compat=0.10,refcount_bits=8', '--size', '1M'], 'Different refcount widths'],
  [['measure', '-O', 'raw', '-o', 'nope=1', at('q')], "Invalid parameter 'nope'"],
];

for (const [args, said] of REFUSED) {
  const line = args.join(' ').replaceAll(directory, 'DIR');
  test.serial(`--qemu-img refuses "${line}", as qemu-img does`, async (t) => {
    const files = () => readdirSync(directory).map((name) => [name, readFileSync(at(name)).toString('latin1')]);
    const before = files();
    const result = await img(...args);
    t.is(result.status, args[0] === 'compare' ? 2 : 1, result.said);
    t.true(result.said.includes(said), result.said);
    t.deepEqual(files(), before);
  });
}

const TAKEN: readonly (readonly string[])[] = [
  ['info', '--outp=json', at('q')],
  ['check', '-T', 'none', at('q')],
  ['map', '-s', '1M', '-l', '1M', at('q')],
  ['snapshot', '-l', at('r')],
  ['rebase', '-t', 'none', '-T', 'none', '-b', 'q', '-F', 'qcow2', at('t')],
  ['amend', '-o', 'data_file_raw=off', at('q')],
  ['amend', '-f', 'qcow2', '-o', 'help'],
  ['amend', '-o', 'refcount_bits=0x10', at('q')],
  ['bitmap', '--add', '-g', '0', at('q'), 'b'],
  ['create', '-f', 'qcow2', '-o', 'lazy_refcounts=y,extended_l2=n', at('y'), '1M'],
  ['dd', `if=${at('q')}`, `of=${at('d')}`, 'bs=1', 'bs=512', 'count=1k'],
  ['convert', '-r', '1M', '-m', '1', '-T', 'none', '-t', 'off', at('q'), at('c')],
  ['convert', '-c', '-O', 'vmdk', at('q'), at('c.vmdk')],
  ['--version'],
];

for (const args of TAKEN) {
  const line = args.join(' ').replaceAll(directory, 'DIR');
  test.serial(`--qemu-img takes "${line}", as qemu-img does`, async (t) => {
    const result = await img(...args);
    t.is(result.status, 0, result.said);
    t.is(result.said, '');
  });
}

test.serial('a file that is missing is 1 of check, no format without a check', async (t) => {
  for (const format of ['raw', 'luks', 'qcow2', 'vpc']) {
    t.is((await runImg(directory, 'check', '-f', format, at('none'))).status, 1, format);
  }
  t.is((await img('check', at('r'))).status, 63);
});

test.serial('map says of the space behind a shorter image under this one that nobody has it', async (t) => {
  await img('create', '-q', '-f', 'qcow2', '-b', 'q', '-F', 'qcow2', at('longer'), '6M');
  const runs = JSON.parse((await img('map', '--output=json', at('longer'))).out) as { start: number }[];
  t.like(runs.at(-1), { start: 4 << 20, length: 2 << 20, depth: 0, present: false, zero: true, data: false });
});

test.serial('map of nothing is one run of nothing', async (t) => {
  const runs = JSON.parse((await img('map', '--output=json', '--start-offset=8M', at('q'))).out) as unknown;
  t.deepEqual(runs, [{ start: 8 << 20, length: 0, depth: 0, present: false, zero: false, data: false }]);
});

test.serial('compare -s tells space that is there from space that is not', async (t) => {
  await img('create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', at('there'), '4M');
  const { status, out } = await img('compare', '-s', at('there'), at('old'));
  t.is(status, 1);
  t.is(out, 'Strict mode: Offset 0 block status mismatch!\n');
  t.is((await img('compare', '-s', at('old'), at('old'))).out, 'Images are identical.\n');
  t.is((await img('compare', at('there'), at('old'))).out, 'Images are identical.\n');
});

test.serial('a bit of a new bitmap stands for a cluster, from 4k to 64k', async (t) => {
  for (const [cluster, granularity] of [
    [512, 4096],
    [16_384, 16_384],
    [2 << 20, 65_536],
  ] as const) {
    await img('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${cluster}`, at('bits'), '1M');
    await img('bitmap', '--add', at('bits'), 'b');
    const info = JSON.parse((await img('info', '--output=json', at('bits'))).out);
    t.is(info['format-specific'].data.bitmaps[0].granularity, granularity);
  }
});

test.serial('a fixed VHD, which begins as its guest wants, is guessed as raw', async (t) => {
  t.like(JSON.parse((await img('info', '--output=json', at('v'))).out), { format: 'raw' });
  t.like(JSON.parse((await img('info', '--output=json', '-f', 'vpc', at('v'))).out), { format: 'vpc' });
});

test.serial('a raw disk has whole sectors', async (t) => {
  writeFileSync(at('odd'), Buffer.alloc(1000, 7));
  t.like(JSON.parse((await img('info', '--output=json', '-f', 'raw', at('odd'))).out), { 'virtual-size': 1024 });
  t.is((await img('convert', '-f', 'raw', at('odd'), at('even'))).status, 0);
  t.deepEqual(readFileSync(at('even')), Buffer.concat([Buffer.alloc(1000, 7), Buffer.alloc(24)]));
  t.is((await img('compare', '-f', 'raw', '-F', 'raw', at('odd'), at('even'))).out, 'Images are identical.\n');
});

test.serial('rebase goes over an image that is itself over another', async (t) => {
  await img('create', '-q', '-f', 'qcow2', at('under'), '4M');
  await img('create', '-q', '-f', 'qcow2', '-b', 'under', '-F', 'qcow2', at('middle'));
  t.deepEqual(await img('rebase', '-b', 'middle', '-F', 'qcow2', at('t')), { status: 0, out: '', said: '' });
});

test.serial('create -o preallocation= takes the space of a raw image', async (t) => {
  for (const [mode, full] of [
    ['off', false],
    ['falloc', true],
    ['full', true],
  ] as const) {
    t.is((await img('create', '-f', 'raw', '-o', `preallocation=${mode}`, at(mode), '1M')).status, 0);
    t.is(statSync(at(mode)).blocks * 512 >= 1 << 20, full, mode);
  }
});

test.serial('a vmdk says which controller and which hardware it is for', async (t) => {
  const options = 'adapter_type=lsilogic,compat6=on';
  const made = await img('create', '-f', 'vmdk', '-o', options, at('scsi'), '8G');
  t.is(
    made.out,
    "Formatting 'DIR/scsi', fmt=vmdk size=8589934592 adapter_type=lsilogic compat6=on hwversion=undefined\n",
  );
  const text = readFileSync(at('scsi')).toString('latin1');
  t.regex(text, /ddb\.adapterType = "lsilogic"/);
  t.regex(text, /ddb\.virtualHWVersion = "6"/);
  t.regex(text, /ddb\.geometry\.heads = "255"/);
  t.is((await inspectVmdk(at('scsi'))).sizeBytes, 8 * 2 ** 30);
  t.is((await img('create', '-f', 'vmdk', '-o', 'adapter_type=scsi', at('n'), '1M')).status, 1);
  t.is((await img('create', '-f', 'vmdk', '-o', 'compat6=on,hwversion=7', at('n'), '1M')).status, 1);
});

test.serial('the line of create has the options in the order of qemu-img', async (t) => {
  const { out } = await img('create', '-f', 'vpc', '-o', 'force_size=on,subformat=fixed', at('line'), '1M');
  t.is(out, "Formatting 'DIR/line', fmt=vpc size=1048576 subformat=fixed force_size=on\n");
});
