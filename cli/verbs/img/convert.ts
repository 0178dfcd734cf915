import { closeSync, existsSync, fdatasyncSync, openSync } from 'node:fs';
import { basename, dirname, isAbsolute, join } from 'node:path';
import process from 'node:process';
import {
  type CompressedTarget,
  type CopyOptions,
  copyImage,
  type DiskImage,
  guessFormat,
  type ImageFormat,
  type ImageSource,
  inspectQcow2,
  openImage,
  openVmdkStream,
  Qcow2Image,
  resolveChain,
} from '../../../services/nbd/images/mod.ts';
import { isNbdUri } from '../../block_devices.ts';
import { KeyValues } from '../../key_value.ts';
import { UsageError } from '../../usage_error.ts';
import { addBitmaps, bitmapsOf, ownExtentsOf } from './convert_parts.ts';
import { type Given, parseSize, type Subcommand } from './grammar.ts';
import { imageOptsOf, secretsOf } from './image_opts.ts';
import { JoinedImage } from './joined_image.ts';
import { openNbd } from './nbd_source.ts';
import { mergedOptions } from './option_list.ts';
import { ImageProgress } from './progress.ts';
import { SalvagedImage } from './salvaged_image.ts';
import {
  checkCache,
  formatOf,
  knownFormat,
  openSource,
  RATE_OPTION,
  SHARED_OPTIONS,
  SOURCE_CACHE_OPTION,
  SOURCE_OPTIONS,
  sameFile,
  withAdvice,
} from './source.ts';
import { dataFileAt, planTarget, replaceFile, TARGET_FORMATS, targetHelp } from './target.ts';

const DEFAULT_SPARSE_BYTES = 4096;
const CACHES = ['unsafe', 'writeback', 'none', 'off', 'writethrough', 'directsync'] as const;
/** QEMU's: of what is on its way at once, and of runs of zeroes */
const MAX_ON_THEIR_WAY = 16;
const MAX_SPARSE_BYTES = 16 << 20;

/** @throws UsageError */
function checkOnTheirWay(value: string, option: string): void {
  if (/^\d{1,2}$/.test(value) && Number(value) >= 1 && Number(value) <= MAX_ON_THEIR_WAY) return;
  throw new UsageError(`Cannot use ${option} ${value}: expected a number from 1 to ${MAX_ON_THEIR_WAY}`);
}

export const convertCommand: Subcommand = {
  name: 'convert',
  summary: 'copy an image to another format',
  operands: 'SOURCE … TARGET',
  options: [
    ...SOURCE_OPTIONS,
    { short: 'O', value: 'FMT', help: `format of TARGET, ${TARGET_FORMATS.join(', ')} (default raw)` },
    { short: 'o', value: 'OPTIONS', help: 'key=value,…; -o help shows those of the format', repeats: true },
    { short: 'c', help: 'compress: for qcow2; a vmdk with subformat=streamOptimized always is' },
    { short: 'l', value: 'SNAPSHOT', help: 'not the disk as it is, but this snapshot inside SOURCE: its id or name' },
    { short: 'S', value: 'SIZE', help: 'runs of zeroes that become holes (default 4k); 0: none, all is written' },
    { short: 'B', value: 'FILE', help: 'TARGET is over FILE: only what SOURCE has by itself is copied' },
    { short: 'F', value: 'FMT', help: 'format of that; has to be given with -B' },
    { long: 'bitmaps', help: 'copy the dirty bitmaps of a qcow2, too' },
    { long: 'skip-broken-bitmaps', help: 'but not those that were not written back' },
    { short: 'n', help: 'TARGET is there already: only write into it' },
    { long: 'target-image-opts', help: 'with -n: TARGET is named as driver=FMT,file.filename=FILE,…' },
    { long: 'target-is-zero', help: 'with -n: TARGET reads as zeroes, which need not be written' },
    {
      long: 'salvage',
      help: 'go on where SOURCE cannot be read: zeroes are in its place, and a warning tells of each',
    },
    { short: 'p', help: 'show how far it is' },
    {
      short: 'm',
      value: 'N',
      help: 'accepted: one read and one write are on their way at once',
      check: checkOnTheirWay,
    },
    { short: 'C', help: 'accepted: copying is our own' },
    RATE_OPTION,
    { short: 'W', help: 'accepted: writes are in order' },
    {
      short: 't',
      value: 'CACHE',
      check: checkCache,
      help: 'unsafe: do not wait until TARGET is on stable storage (default); others: wait',
    },
    SOURCE_CACHE_OPTION,
    ...SHARED_OPTIONS,
  ],
  text: `Copies an image, with all that is under it, to a new one. Several sources follow each other on the new disk. TARGET is
there once it is finished; until then what was there stays as it is. Where a file is replaced, the new one is on stable
storage first, unless -t unsafe is given.`,
  examples: `  caisson img convert -f qcow2 -O raw -p disk.qcow2 disk.raw
  caisson img convert -f raw -O qcow2 -c -o compression_type=zstd disk.raw disk.qcow2
  caisson img convert -f vmdk -O qcow2 appliance.vmdk appliance.qcow2
  caisson img convert -f qcow2 --backing-root=. -O vpc -o force_size=on top.qcow2 top.vhd`,
  async run(given) {
    const said = given.has('target-image-opts') ? imageOptsOf(given, given.operands.at(-1) ?? '') : undefined;
    if (given.has('target-image-opts') && !given.has('n')) {
      throw given.usage('--target-image-opts is for a TARGET that is there (-n); -o is for a new one');
    }
    const outFormat = said?.format ?? knownFormat(given, given.text('O') ?? 'raw');
    const options = mergedOptions(given);
    if (options === undefined) {
      process.stdout.write(targetHelp(outFormat));
      return 0;
    }
    const paths = given.operands.slice(0, -1);
    const target = given.operands.at(-1);
    if (target === undefined || paths.length === 0) {
      throw given.usage(target === undefined ? 'its SOURCE is missing' : 'its TARGET is missing');
    }
    if (given.has('C') && given.has('S')) throw given.usage('-C and -S exclude each other');
    if (given.has('C') && given.has('salvage')) throw given.usage('-C and --salvage exclude each other');
    if (given.has('C') && given.has('c')) throw given.usage('-C and -c exclude each other');
    if (given.has('target-is-zero') && !given.has('n')) {
      throw given.usage('--target-is-zero is for a TARGET that is there (-n)');
    }
    if (given.has('skip-broken-bitmaps') && !given.has('bitmaps')) {
      throw given.usage('--skip-broken-bitmaps is for --bitmaps');
    }
    const sources: DiskImage[] = [];
    try {
      const snapshot = given.text('l')?.replace(/^snapshot\.(?:name|id)=/, '');
      for (const path of paths) {
        const format = formatOf(given, 'f', path);
        const opened = await openSource(given, path, format, snapshot === undefined ? {} : { snapshot });
        sources.push(opened.image);
        if (sameFile(opened.layers, target)) throw given.usage(`${target} is one of the files that are read`);
      }
      await write(given, sources, target, outFormat, options);
    } finally {
      for (const image of sources) await image.close();
    }
    return 0;
  },
};

/** Copies `sources`, one after the other, into a new image at `path`, or with -n into the one that is there. */
export async function write(
  given: Given,
  sources: readonly DiskImage[],
  path: string,
  format: ImageFormat,
  options: string,
): Promise<void> {
  const sizeBytes = sources.reduce((sum, image) => sum + image.sizeBytes, 0);
  const sparse = given.text('S');
  const sparseBytes = sparse === undefined ? DEFAULT_SPARSE_BYTES : parseSize(sparse, '-S');
  if (sparseBytes % 512 !== 0 || sparseBytes > MAX_SPARSE_BYTES) {
    throw given.usage(`-S ${sparse}: expected a multiple of 512, and at most ${MAX_SPARSE_BYTES}`);
  }
  const over = await overOf(given, path, format, options, sources.length);
  // qemu-img takes -c for every vmdk, and compresses streams alone.
  const compress = given.has('c') && !(given.asQemu && format === 'vmdk');
  const bitmaps = given.has('bitmaps') ? bitmapsOf(given, sources, format) : [];
  const fill = async (source: ImageSource, targetIsZero: boolean, compressed: boolean): Promise<void> => {
    const target = await openTarget(given, source, compressed, isUnsafe(given));
    try {
      const own = over === undefined ? undefined : ownExtentsOf(sources[0]!);
      await copyAll(given, sources, target.image, { sparseBytes, targetIsZero, packing: target.packing, own });
      await target.packing?.finish();
      await addBitmaps(target.image, bitmaps);
      await target.image.flush();
    } finally {
      await target.image.close();
    }
  };
  if (isNbdUri(path) && !given.has('n')) {
    throw given.usage(`${path} is an export, which cannot be made, only written to by convert -n`);
  }
  if (given.has('n')) {
    if (options !== '') throw given.usage('-o is for a new TARGET, and -n says that it is there');
    const there = imageOptsOf(given, path) ?? (await targetThere(given, path, format, over));
    return fill(there, given.has('target-is-zero'), compress);
  }
  const target = planTarget({
    format,
    sizeBytes,
    options,
    name: basename(path),
    secrets: secretsOf(given),
    ...(over === undefined ? {} : { backing: over.name }),
  });
  if (compress && format !== 'qcow2' && !target.compressed) {
    throw given.usage(`-c is for qcow2, and for vmdk with -o subformat=streamOptimized; ${format} has no compression`);
  }
  const keys = options === '' ? undefined : new KeyValues('-o', options);
  if (given.has('c') && (keys?.take('preallocation') ?? 'off') !== 'off') {
    throw given.usage('-c and -o preallocation= exclude each other');
  }
  if (given.has('bitmaps') && /^(?:0\.10|v2)$/.test(keys?.take('compat') ?? '')) {
    throw given.usage('--bitmaps is for qcow2 of version 3; compat=0.10 keeps none');
  }
  await replaceFile(path, async (partial) => {
    await target.create(partial);
    const { passphrase } = target;
    const data = target.dataFile === undefined ? undefined : dataFileAt(path, target.dataFile);
    const parts = {
      ...(passphrase === undefined ? {} : { passphrase }),
      ...(data === undefined ? {} : { dataFile: { path: data } }),
    };
    // What is behind a new LUKS header is noise, not zeroes.
    const targetIsZero = over === undefined && format !== 'luks';
    await fill({ path: partial, format, ...parts, ...over?.source }, targetIsZero, compress || target.compressed);
    if (!given.has('t') && existsSync(path)) {
      if (data !== undefined) syncFile(data);
      syncFile(partial);
    }
  });
}

/** Writes need no order, as QEMU's default here is; what is there already (-n) is not put at risk. @throws UsageError */
function isUnsafe(given: Given): boolean {
  return given.oneOf('t', CACHES, given.has('n') ? 'writeback' : 'unsafe') === 'unsafe';
}

function syncFile(path: string): void {
  const fd = openSync(path, 'r+');
  try {
    fdatasyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** What the new image is to be over: its name there, and what to open. */
interface Over {
  readonly name: { readonly file: string; readonly format: ImageFormat };
  readonly source: { readonly backing: ImageSource };
}

async function overOf(
  given: Given,
  path: string,
  format: ImageFormat,
  options: string,
  sources: number,
): Promise<Over | undefined> {
  const keys = options === '' ? undefined : new KeyValues('-o', options);
  const file = given.text('B') ?? keys?.take('backing_file');
  if (file === undefined) {
    if (given.has('F')) throw given.usage('-F is for -B');
    return undefined;
  }
  if (sources > 1) throw given.usage('-B is for one SOURCE');
  if (format !== 'qcow2') throw given.usage(`-B is for qcow2; images of format ${format} are on top of nothing`);
  const at = isAbsolute(file) ? file : join(dirname(path), file);
  const word = given.text('F') ?? keys?.take('backing_fmt');
  if (word === undefined && !(given.asQemu && given.has('n'))) {
    throw given.usage(`the format of ${file} is not given, and never guessed; add -F qcow2, or whatever it is`);
  }
  const known = word === undefined ? (guessFormat(at) ?? 'raw') : knownFormat(given, word);
  const root = given.text('backing-root') ?? (given.asQemu ? '/' : undefined);
  const backing: ImageSource =
    root === undefined
      ? { path: at, format: known }
      : await withAdvice(at, () => resolveChain(at, known, { root, guess: given.asQemu }));
  return { name: { file, format: known }, source: { backing } };
}

/** A target that is there, with what its header says is under it as far as that may be followed, or as -B says. */
async function targetThere(
  given: Given,
  path: string,
  format: ImageFormat,
  over: Over | undefined,
): Promise<ImageSource> {
  if (format !== 'qcow2' || (await inspectQcow2(path)).header.backingFile === undefined) return { path, format };
  const root = given.text('backing-root') ?? (given.asQemu ? '/' : undefined);
  if (root === undefined) return { path, format, ...over?.source };
  return withAdvice(path, () => resolveChain(path, format, { root, guess: given.asQemu }));
}

async function copyAll(
  given: Given,
  sources: readonly DiskImage[],
  target: DiskImage,
  options: {
    sparseBytes: number;
    targetIsZero: boolean;
    packing: CompressedTarget | undefined;
    own: CopyOptions['own'] | undefined;
  },
): Promise<void> {
  const [only, ...more] = sources;
  const joined = more.length === 0 ? only! : new JoinedImage(sources);
  const warn = (what: string): void => {
    process.stderr.write(`${given.asQemu ? 'qemu-img' : 'caisson img'}: warning: ${what}\n`);
  };
  const source = given.has('salvage') ? new SalvagedImage(joined, warn) : joined;
  const progress = given.has('p') && !given.has('q') ? new ImageProgress(source.sizeBytes) : undefined;
  const { packing, own, ...rest } = options;
  await copyImage(source, target, {
    ...rest,
    ...(packing === undefined ? {} : { compressed: packing }),
    ...(own === undefined ? {} : { own }),
    onProgress: (done) => progress?.show(done),
  });
  progress?.end();
}

/** The image to write to, and where it takes compressed blocks the way to give them. */
async function openTarget(
  given: Given,
  source: ImageSource,
  compressed: boolean,
  unsafe: boolean,
): Promise<{ image: DiskImage; packing: Packing | undefined }> {
  const { format } = source;
  if (compressed && format === 'vmdk') {
    const stream = await openVmdkStream(source.path!);
    return { image: stream.image, packing: stream };
  }
  const image = isNbdUri(source.path!)
    ? await openNbd(given, source.path!, false)
    : await openImage(source, { readOnly: false, unsafe });
  if (!compressed) return { image, packing: undefined };
  if (!(image instanceof Qcow2Image)) throw given.usage(`images of format ${format} have no compression`);
  const write = (offset: number, data: Uint8Array) => image.writeCompressed(offset, data);
  return { image, packing: { blockBytes: image.header.clusterBytes, write, finish: async () => {} } };
}

interface Packing extends CompressedTarget {
  finish(): Promise<void>;
}
