import { closeSync, existsSync, fdatasyncSync, openSync } from 'node:fs';
import { basename } from 'node:path';
import process from 'node:process';
import {
  type CompressedTarget,
  copyImage,
  type DiskImage,
  type ImageFormat,
  type ImageSource,
  openImage,
  openVmdkStream,
  Qcow2Image,
} from '../../../services/nbd/images/mod.ts';
import { type Given, parseSize, type Subcommand } from './grammar.ts';
import { imageOptsOf, secretsOf } from './image_opts.ts';
import { ImageProgress } from './progress.ts';
import { formatOf, knownFormat, openSource, SHARED_OPTIONS, SOURCE_OPTIONS } from './source.ts';
import { planTarget, replaceFile, TARGET_FORMATS, targetHelp } from './target.ts';

const DEFAULT_SPARSE_BYTES = 4096;
const CACHES = ['unsafe', 'writeback', 'none', 'writethrough', 'directsync'] as const;

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
    { short: 'n', help: 'TARGET is there already: only write into it' },
    { long: 'target-image-opts', help: 'with -n: TARGET is named as driver=FMT,file.filename=FILE,…' },
    { long: 'target-is-zero', help: 'with -n: TARGET reads as zeroes, which need not be written' },
    { short: 'p', help: 'show how far it is' },
    { short: 'm', value: 'N', help: 'accepted: one read and one write are on their way at once' },
    { short: 'W', help: 'accepted: writes are in order' },
    {
      short: 't',
      value: 'CACHE',
      help: 'unsafe: do not wait until TARGET is on stable storage (default); others: wait',
    },
    { short: 'T', value: 'CACHE', help: "accepted: the system's cache is used" },
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
    const options = given.all('o').join(',');
    if (options === 'help' || options === '?') {
      process.stdout.write(targetHelp(outFormat));
      return 0;
    }
    const paths = given.operands.slice(0, -1);
    const target = given.operands.at(-1);
    if (target === undefined || paths.length === 0) {
      throw given.usage(target === undefined ? 'its SOURCE is missing' : 'its TARGET is missing');
    }
    const sources: DiskImage[] = [];
    try {
      const snapshot = given.text('l');
      for (const path of paths) {
        const format = formatOf(given, 'f', path);
        sources.push((await openSource(given, path, format, snapshot === undefined ? {} : { snapshot })).image);
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
  const fill = async (source: ImageSource, targetIsZero: boolean, compressed: boolean): Promise<void> => {
    const target = await openTarget(given, source, compressed, isUnsafe(given));
    try {
      await copyAll(given, sources, target.image, { sparseBytes, targetIsZero, packing: target.packing });
      await target.packing?.finish();
      await target.image.flush();
    } finally {
      await target.image.close();
    }
  };
  if (given.has('n')) {
    if (options !== '') throw given.usage('-o is for a new TARGET, and -n says that it is there');
    if (given.has('c')) throw given.usage('-c is for a new TARGET');
    return fill(imageOptsOf(given, path) ?? { path, format }, given.has('target-is-zero'), false);
  }
  const target = planTarget({ format, sizeBytes, options, name: basename(path), secrets: secretsOf(given) });
  if (given.has('c') && format !== 'qcow2' && !target.compressed) {
    throw given.usage(`-c is for qcow2, and for vmdk with -o subformat=streamOptimized; ${format} has no compression`);
  }
  await replaceFile(path, async (partial) => {
    await target.create(partial);
    const { passphrase } = target;
    const source = { path: partial, format, ...(passphrase === undefined ? {} : { passphrase }) };
    // What is behind a new LUKS header is noise, not zeroes.
    await fill(source, format !== 'luks', given.has('c') || target.compressed);
    if (!given.has('t') && existsSync(path)) syncFile(partial);
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

async function copyAll(
  given: Given,
  sources: readonly DiskImage[],
  target: DiskImage,
  options: { sparseBytes: number; targetIsZero: boolean; packing: CompressedTarget | undefined },
): Promise<void> {
  const total = sources.reduce((sum, image) => sum + image.sizeBytes, 0);
  const progress = given.has('p') && !given.has('q') ? new ImageProgress(total) : undefined;
  const { packing, ...rest } = options;
  let offset = 0;
  for (const source of sources) {
    const start = offset;
    if (packing !== undefined && start % packing.blockBytes !== 0) {
      throw given.usage('several sources can be compressed into one only where each has whole clusters');
    }
    await copyImage(source, target, {
      ...rest,
      ...(packing === undefined ? {} : { compressed: packing }),
      offset: start,
      onProgress: (done) => progress?.show(start + done),
    });
    offset += source.sizeBytes;
  }
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
  const image = await openImage(source, { readOnly: false, unsafe });
  if (!compressed) return { image, packing: undefined };
  if (!(image instanceof Qcow2Image)) throw given.usage(`images of format ${format} have no compression`);
  const write = (offset: number, data: Uint8Array) => image.writeCompressed(offset, data);
  return { image, packing: { blockBytes: image.header.clusterBytes, write, finish: async () => {} } };
}

interface Packing extends CompressedTarget {
  finish(): Promise<void>;
}
