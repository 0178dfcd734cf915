import { statSync } from 'node:fs';
import {
  type BackingPolicy,
  type DiskImage,
  guessedFormat,
  guessFormat,
  IMAGE_FORMATS,
  type ImageFormat,
  type ImageSource,
  inspectQcow2,
  openImage,
  resolveChain,
} from '../../../services/nbd/images/mod.ts';
import { isNbdUri } from '../../block_devices.ts';
import { didYouMean } from '../../suggest.ts';
import { UsageError } from '../../usage_error.ts';
import { type Given, type OptionRule, parseSize } from './grammar.ts';
import { IMAGE_OPTS_OPTIONS, imageOptsOf, saysBacking } from './image_opts.ts';
import { openNbd } from './nbd_source.ts';
import { WholeSectors } from './whole_sectors.ts';

/** What the command takes as the format of an existing image, for the help */
export const FORMAT_LIST = IMAGE_FORMATS.join(', ');

/** How an existing image is named to be opened. */
export const SOURCE_OPTIONS: readonly OptionRule[] = [
  { short: 'f', value: 'FMT', help: `format of the image, ${FORMAT_LIST}; never guessed` },
  {
    long: 'backing',
    value: 'F:PATH',
    help: 'image of format F under it; again: what is under that one',
    repeats: true,
  },
  { long: 'backing-root', value: 'DIR', help: 'let names in images open files below DIR, but none elsewhere' },
  ...IMAGE_OPTS_OPTIONS,
  { long: 'allow-extents', help: 'let a vmdk open the files that it names in its own folder' },
];

/** Words of qemu-img that need nothing here: reading takes no lock, and caches are the system's. */
export const SHARED_OPTIONS: readonly OptionRule[] = [
  { short: 'U', long: 'force-share', help: 'accepted: reading never needs the image for itself' },
  { short: 'q', help: 'print nothing but errors' },
];

const SECTOR_BYTES = 512;
const CACHES = ['none', 'off', 'writethrough', 'writeback', 'directsync', 'unsafe'];

/** @throws UsageError for a cache mode that is none */
export function checkCache(value: string, option: string): void {
  if (CACHES.includes(value)) return;
  throw new UsageError(`Cannot use ${option} ${value}: expected ${CACHES.join(' or ')}`);
}

const ACCEPTED_CACHE = { value: 'CACHE', help: "accepted: the system's cache is used", check: checkCache } as const;
export const SOURCE_CACHE_OPTION: OptionRule = { short: 'T', ...ACCEPTED_CACHE };
export const CACHE_OPTION: OptionRule = { short: 't', ...ACCEPTED_CACHE };
export const RATE_OPTION: OptionRule = {
  short: 'r',
  value: 'RATE',
  help: 'accepted: it is done as fast as it can be',
  check: (value, option) => void parseSize(value, option),
};

/** Names inside images as qemu-img reads them, but for what was said */
function followAll({ dataFile }: ImageSource): BackingPolicy {
  return { root: '/', guess: true, ...(dataFile?.path === undefined ? {} : { dataFile: dataFile.path }) };
}

/** One image of a chain, the top first. */
export interface Layer {
  readonly image: DiskImage;
  readonly source: ImageSource;
}

export interface OpenedSource {
  readonly image: DiskImage;
  readonly layers: readonly Layer[];
}

/** The format that was given under `option`. @throws UsageError that says how the file looks, where none was */
export function formatOf(given: Given, option: string, path: string): ImageFormat {
  if (isNbdUri(path)) return formatOfNbd(given, option, path);
  const format = imageOptsOf(given, path)?.format ?? given.text(option);
  if (format === undefined && given.asQemu) return guessedFormat(path);
  if (format === undefined) {
    const looks = guessFormat(path, { footer: true });
    const add =
      looks === undefined
        ? `; add -${option} raw, or whatever it is`
        : `; it looks like ${looks}: add -${option} ${looks} if it is one`;
    throw given.usage(`the format of ${path} is not given, and never guessed${add}`);
  }
  return knownFormat(given, format, path);
}

/** An export is a disk as it is: images inside of exports are not looked into. @throws UsageError */
function formatOfNbd(given: Given, option: string, name: string): 'raw' {
  const format = given.text(option) ?? 'raw';
  if (format === 'raw' || format === 'nbd') return 'raw';
  throw given.usage(`${name} is an export, which is a raw disk; images of format ${format} are read from files`);
}

/** `path`: of the image that has it, for the error. @throws UsageError */
export function knownFormat(given: Given, format: string, path?: string): ImageFormat {
  const known = IMAGE_FORMATS.find((name) => name === (format === 'vhd' ? 'vpc' : format));
  if (known !== undefined) return known;
  const whose = path === undefined ? '' : ` of ${path}`;
  throw given.usage(
    `format ${format}${whose} is not known, expected ${FORMAT_LIST}${didYouMean(format, IMAGE_FORMATS)}`,
  );
}

/**
 * What to open for `path`: with the images that `--backing` puts under it, or, below `--backing-root`, with those that
 * the images name. Without both, names inside images open nothing.
 */
export async function sourceOf(given: Given, path: string, format: ImageFormat): Promise<ImageSource> {
  const said = imageOptsOf(given, path);
  if (said !== undefined) {
    if (given.has('backing') || given.has('backing-root')) {
      throw given.usage('with --image-opts, what is under an image is said by backing.driver=, backing.file.filename=');
    }
    const named = given.asQemu && !saysBacking(given, path) ? await resolveChain(path, format, followAll(said)) : {};
    const asked = given.asQemu && (await needsNoSecret(path, format)) ? withoutPassphrase(said) : said;
    return { ...named, ...asked, ...(given.has('allow-extents') ? { allowExtents: true } : {}) };
  }
  const root = given.text('backing-root');
  const under = given.all('backing');
  const extents = given.has('allow-extents') ? { allowExtents: true } : {};
  if (root !== undefined && under.length > 0) throw given.usage('--backing and --backing-root exclude each other');
  if (given.asQemu && under.length === 0) {
    const named = await withAdvice(path, () => resolveChain(path, format, { root: root ?? '/', guess: true }));
    return { ...named, ...extents };
  }
  if (root !== undefined) {
    return { ...(await withAdvice(path, () => resolveChain(path, format, { root }))), ...extents };
  }
  let backing: ImageSource | undefined;
  for (const text of under.toReversed()) {
    const colon = text.indexOf(':');
    if (colon < 1 || colon === text.length - 1) {
      throw given.usage(`--backing=${text}: expected a format, a colon and a path, qcow2:base.qcow2`);
    }
    const source = { path: text.slice(colon + 1), format: knownFormat(given, text.slice(0, colon)) };
    backing = backing === undefined ? source : { ...source, backing };
  }
  return { path, format, ...extents, ...(backing === undefined ? {} : { backing }) };
}

/** qemu-img passes over a secret for a qcow2 that is not encrypted; without --qemu-img that is refused. */
async function needsNoSecret(path: string, format: ImageFormat): Promise<boolean> {
  return format === 'qcow2' && (await inspectQcow2(path)).header.encryption === 0;
}

function withoutPassphrase({ passphrase: _, ...source }: ImageSource): ImageSource {
  return source;
}

/** Opens an image with what is under it. @throws as openImage(), with advice */
export async function openSource(
  given: Given,
  path: string,
  format: ImageFormat,
  options: { readonly snapshot?: string } = {},
): Promise<OpenedSource> {
  if (options.snapshot !== undefined && format !== 'qcow2') {
    throw given.usage(`-l is for qcow2; images of format ${format} keep no snapshots`);
  }
  const layers: Layer[] = [];
  if (isNbdUri(path)) {
    const image = await withAdvice(path, () => openNbd(given, path, true));
    return { image, layers: [{ image, source: { path, format } }] };
  }
  const source = { ...(await sourceOf(given, path, format)), ...options };
  const image = await withAdvice(path, () =>
    openImage(source, {
      readOnly: true,
      holes: true,
      onLayer: (layer, from) => layers.unshift({ image: layer, source: from }),
    }),
  );
  if (format !== 'raw' || image.sizeBytes % SECTOR_BYTES === 0) return { image, layers };
  const whole = new WholeSectors(image);
  return { image: whole, layers: [{ image: whole, source }] };
}

/** Whether `path` is a file of one of these images: what is read must not be written over meanwhile. */
export function sameFile(layers: readonly Layer[], path: string): boolean {
  const there = statSync(path, { throwIfNoEntry: false });
  if (there === undefined || !there.isFile()) return false;
  return layers.some(({ source }) => {
    const read = source.path === undefined ? undefined : statSync(source.path, { throwIfNoEntry: false });
    return read?.dev === there.dev && read.ino === there.ino;
  });
}

/** Adds the path to errors, and to those of names inside images what to do about them. */
export async function withAdvice<T>(path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const advice = /none was given|no parent was given/.test(text)
      ? '; name it by --backing=FORMAT:PATH, or let names in images open files below a folder by --backing-root=DIR'
      : /no passphrase was given/.test(text)
        ? '; name it by --object secret,id=ID,file=FILE and --image-opts driver=FMT,file.filename=FILE,…key-secret=ID'
        : '';
    throw new Error(`${text.includes(path) ? '' : `${path}: `}${text}${advice}`, { cause: error });
  }
}
