import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { IMAGE_FORMATS } from '../../services/nbd/images/image_format.ts';
import { type OpenImageOptions, openImage } from '../../services/nbd/images/open_image.ts';
import { RawImage } from '../../services/nbd/images/raw_image.ts';
import type { DiskImage, ImageFormat, ImageSource } from '../../services/nbd/mod.ts';
import { SliceImage } from '../../services/nbd/slice_image.ts';
import { SharedSource } from '../../services/nbd/workers/shared_source.ts';
import { KeyValues } from '../key_value.ts';
import { UsageError } from '../usage_error.ts';
import type { NbdArguments } from './arguments.ts';

/** Beyond that the clients, and not we, are busy */
const DEFAULT_PROCESSES = 4;
const MAX_PROCESSES = 64;

type RawOptions = Required<Pick<OpenImageOptions, 'readOnly' | 'unmap' | 'sendfile'>>;

/** What is served, and how other processes come to serve it, too. */
export interface OpenedSource {
  readonly image: DiskImage;
  /** Undefined: one process has to do it alone */
  readonly sharing:
    | {
        readonly files: SharedSource;
        readonly options: RawOptions;
        readonly offset: number;
        /** The image itself, where it is a raw one */
        readonly raw: RawImage | undefined;
      }
    | undefined;
}

/**
 * IMAGE, opened as the options say; `processes` that may serve it come from {@link processesOf}.
 * @throws UsageError, and as openImage()
 */
export async function openSource(values: NbdArguments, processes: number): Promise<OpenedSource> {
  const [path, ...more] = values.operands;
  if (path === undefined) throw new UsageError('Cannot serve: no IMAGE is given');
  if (more.length > 0) throw new UsageError(`Cannot serve ${more[0]}: one IMAGE at a time`);
  const offset = values.integer('offset', 0, 0, Number.MAX_SAFE_INTEGER);
  const said = values.has('image-opts') ? await imageOptions(path, values) : await sourceOf(path, values);
  const source = withSnapshot(await withNames(said, values), values);
  const readOnly = values.has('read-only') || source.snapshot !== undefined;
  const options = {
    readOnly,
    unmap: discards(values),
    sendfile: values.oneOf('sendfile', ['on', 'off'], 'on') === 'on',
  };
  const alone = whyAlone(values, source, readOnly);
  if (values.has('processes') && processes > 1 && alone !== undefined) {
    throw new UsageError(`Cannot use --processes=${processes}: ${alone}`);
  }
  if (processes > 1 && alone === undefined) return await openShared(source, options, offset);
  const opened = values.has('snapshot') ? await openOverlay(source) : await openImage(source, options);
  // qemu-nbd exports whole sectors.
  const image =
    values.has('qemu-nbd') && opened instanceof RawImage
      ? new (await import('../../services/nbd/images/sector_image.ts')).SectorImage(opened, {
          guessed: !values.has('image-opts') && !values.has('format'),
        })
      : opened;
  return { image: await sliced(image, offset), sharing: undefined };
}

/** How many processes may serve clients: as many as cores, up to 4, unless the user says. @throws UsageError */
export function processesOf(values: NbdArguments, shared: number): number {
  const processes = values.integer('processes', Math.min(availableParallelism(), DEFAULT_PROCESSES), 1, MAX_PROCESSES);
  if (shared > 1) return processes;
  if (values.has('processes') && processes > 1) {
    throw new UsageError(`Cannot use --processes=${processes} for one client at a time: add -e`);
  }
  return 1;
}

/** Why an image cannot be served by several processes; undefined: it can. */
function whyAlone(values: NbdArguments, source: ImageSource, readOnly: boolean): string | undefined {
  // What an image keeps in memory beside its file (tables, a size, a copy) has one owner.
  if (!readOnly && source.format !== 'raw') return `a ${source.format} image that is written to has one owner`;
  for (const word of ['snapshot', 'resizable', 'qemu-nbd', 'allow-extents']) {
    if (values.has(word)) return `not with --${word}`;
  }
  return SharedSource.isPossible ? undefined : 'this system has no /proc/self/fd';
}

async function openShared(source: ImageSource, options: RawOptions, offset: number): Promise<OpenedSource> {
  const files = SharedSource.open(source, options);
  try {
    const opened = await openImage(files.here, options);
    const raw = opened instanceof RawImage ? opened : undefined;
    return { image: await sliced(opened, offset), sharing: { files, options, offset, raw } };
  } catch (error) {
    files.close();
    throw error;
  }
}

async function sliced(image: DiskImage, offset: number): Promise<DiskImage> {
  if (offset === 0) return image;
  try {
    return new SliceImage(image, offset);
  } catch (error) {
    await image.close();
    throw error;
  }
}

/** IMAGE with what `--backing` puts under it, the nearest first. What an image says itself opens no file. */
async function sourceOf(path: string, values: NbdArguments): Promise<ImageSource> {
  const format = values.get('format') ?? (await guessedFormat(path, values));
  let backing: ImageSource | undefined;
  for (const text of [...values.all('backing')].reverse()) {
    const colon = text.indexOf(':');
    if (colon < 1 || colon === text.length - 1) {
      throw new UsageError(`Cannot use --backing=${text}: expected a format, a colon and a path`);
    }
    backing = imageSource(text.slice(colon + 1), text.slice(0, colon), backing);
  }
  const source = imageSource(path, format, backing);
  if (!values.has('allow-extents')) return source;
  if (format !== 'vmdk') throw new UsageError('Cannot use --allow-extents: it is for -f vmdk');
  return { ...source, allowExtents: true };
}

/** Below `--backing-root`, names inside images lead to what is under them; without it they open nothing. */
async function withNames(source: ImageSource, values: NbdArguments): Promise<ImageSource> {
  const root = values.get('backing-root');
  if (root === undefined || source.path === undefined) return source;
  if (source.backing !== undefined)
    throw new UsageError('Cannot use --backing-root: what is under IMAGE is said already');
  const { resolveChain } = await import('../../services/nbd/images/backing_policy.ts');
  const moved = source.dataFile?.path === undefined ? {} : { dataFile: source.dataFile.path };
  const policy = { root, guess: values.has('qemu-nbd'), ...moved };
  return { ...(await resolveChain(source.path, source.format, policy)), ...source };
}

/** `-l NAME`, or in qemu-nbd's long words `-l snapshot.id=1,snapshot.name=NAME` */
function withSnapshot(source: ImageSource, values: NbdArguments): ImageSource {
  const text = values.get('load-snapshot');
  if (text === undefined) return source;
  if (source.format !== 'qcow2') throw new UsageError('Cannot use --load-snapshot: it is for qcow2');
  if (!text.startsWith('snapshot.')) return { ...source, snapshot: text };
  const keys = new KeyValues('--load-snapshot', text);
  const [id, name] = [keys.take('snapshot.id'), keys.take('snapshot.name')];
  keys.end();
  const snapshot = id ?? name;
  if (snapshot === undefined) throw new UsageError(`Cannot use --load-snapshot=${text}: expected an id or a name`);
  return { ...source, snapshot };
}

/** As qemu-nbd does it, for scripts: with its warning, and a raw disk that cannot become one of another format. */
async function guessedFormat(path: string, values: NbdArguments): Promise<ImageFormat> {
  if (!values.has('qemu-nbd')) throw new UsageError(`Cannot serve ${path}: its format is not given; add -f raw`);
  const images = await import('../../services/nbd/images/guess_format.ts');
  const guess = images.guessedFormat(path);
  if (guess === 'raw') {
    process.stderr.write(
      `WARNING: Image format was not specified for '${path}' and probing guessed raw.
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.
         Specify the 'raw' format explicitly to remove the restrictions.\n`,
    );
  }
  return guess;
}

function discards(values: NbdArguments): boolean {
  const value = values.get('discard') ?? 'ignore';
  if (value !== 'ignore' && value !== 'off' && value !== 'unmap' && value !== 'on') {
    throw new UsageError(`Cannot use --discard=${value}: expected ignore or unmap`);
  }
  return value === 'unmap' || value === 'on';
}

/** `driver=qcow2,file.driver=file,file.filename=PATH,…`, or `driver=file,filename=PATH` for a raw one */
async function imageOptions(text: string, values: NbdArguments): Promise<ImageSource> {
  if (/(?:^|,)driver=/.test(text)) {
    const { parseImageWords } = await import('../drives.ts');
    const { toImageSource, withSecrets } = await import('../encryption.ts');
    const { isSecret, parseSecret, Secrets } = await import('../secrets.ts');
    const secrets = new Secrets(
      '--object',
      values
        .all('object')
        .filter(isSecret)
        .map((object) => parseSecret('--object', object)),
      { read: true },
    );
    return toImageSource(withSecrets(parseImageWords('--image-opts', text), secrets));
  }
  const keys = new KeyValues('--image-opts', text, 'file.filename');
  keys.oneOf('file.driver', ['file'], 'file');
  const path = keys.take('file.filename') ?? keys.require('filename');
  keys.end();
  return imageSource(path, 'raw', undefined);
}

function imageSource(path: string, format: string, backing: ImageSource | undefined): ImageSource {
  const known = IMAGE_FORMATS.find((name): name is ImageFormat => name === format);
  if (known === undefined) {
    throw new UsageError(`Cannot serve ${path}: format ${format} is not known, expected ${IMAGE_FORMATS.join(' or ')}`);
  }
  return { path, format: known, ...(backing === undefined ? {} : { backing }) };
}

/** `--snapshot`: a qcow2 image over IMAGE in a folder that is gone before the first client comes. */
async function openOverlay(backing: ImageSource): Promise<DiskImage> {
  const under = await openImage(backing, { readOnly: true });
  const { sizeBytes } = under;
  await under.close();
  const { createQcow2 } = await import('../../services/nbd/images/qcow2/mod.ts');
  const folder = mkdtempSync(join(tmpdir(), 'caisson-nbd-'));
  try {
    const path = join(folder, 'overlay.qcow2');
    await createQcow2(path, { sizeBytes, backing: { file: 'named by the command', format: backing.format } });
    return await openImage({ path, format: 'qcow2', backing }, { readOnly: false });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
