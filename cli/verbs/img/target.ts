import {
  accessSync,
  constants,
  existsSync,
  lstatSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { dirname, isAbsolute, join } from 'node:path';
import process from 'node:process';
import { VMDK_ADAPTERS } from '../../../protocols/vmdk/mod.ts';
import {
  createLuks,
  createLuksHeader,
  createQcow2,
  createVhd,
  createVmdk,
  type DiskImage,
  type ImageFormat,
  type ImageSource,
  lockImage,
  openImage,
  preallocateQcow2,
  Qcow2Image,
  RawImage,
  vhdDiskBytes,
} from '../../../services/nbd/images/mod.ts';
import { systemReason } from '../../../services/shared/system_error.ts';
import { KeyValues } from '../../key_value.ts';
import { Secrets } from '../../secrets.ts';
import { UsageError } from '../../usage_error.ts';
import { parseSize } from './grammar.ts';
import { ENCRYPTION_HELP, type TargetEncryption, takeEncryption } from './target_encryption.ts';

const PIECE_BYTES = 1 << 20;
/** Formats that this command makes */
export const TARGET_FORMATS = ['raw', 'qcow2', 'vpc', 'vmdk', 'luks'] as const;

export interface TargetOptions {
  readonly format: ImageFormat;
  /** Of the disk, in `bytes` */
  readonly sizeBytes: number;
  /** `-o`, all of them joined by commas */
  readonly options: string;
  readonly backing?: { readonly file: string; readonly format: string };
  /** Of the file, for formats that write it down */
  readonly name?: string;
  /** Where passphrases come from */
  readonly secrets?: Secrets;
}

/** A new image as it was decided; nothing is made yet. */
export interface Target {
  /** What the disk will have: more than asked for where the format counts in larger units, in `bytes` */
  readonly sizeBytes: number;
  /** qemu-img's words of what is made, for the line that says so */
  readonly description: string;
  readonly compressed: boolean;
  /** Of an encrypted image, to open it */
  readonly passphrase?: string;
  /** Where a qcow2 keeps its clusters, if that is another file: as it is named there */
  readonly dataFile?: string;
  /** Makes the file at `path`; names inside it count from the folder of the image */
  readonly create: (path: string) => Promise<void>;
}

/** What `-o help` prints for a format. */
export function targetHelp(format: ImageFormat): string {
  const lines = HELP[format];
  if (lines === undefined) throw new UsageError(`Cannot make images of format ${format}: it is only read`);
  return `Supported options:\n${lines.map((line) => `  ${line}`).join('\n')}\n`;
}

const PREALLOCATIONS: Partial<Record<ImageFormat, readonly Preallocation[]>> = {
  qcow2: ['off', 'metadata', 'falloc', 'full'],
  raw: ['off', 'falloc', 'full'],
};
type Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

const HELP: Partial<Record<ImageFormat, readonly string[]>> = {
  raw: [
    'preallocation=<str>    - off (default), or falloc and full, which write zeroes',
    'size=<size>            - Virtual disk size',
  ],
  qcow2: [
    'backing_file=<str>     - File name of a base image',
    'backing_fmt=<str>      - Its format; has to be given',
    'cluster_size=<size>    - A power of two from 512 to 2M (default 64k)',
    'compat=<str>           - 0.10, or 1.1 (default)',
    'compression_type=<str> - zlib (default) or zstd',
    'encrypt.format=<str>   - luks; with it:',
    ...ENCRYPTION_HELP.map(([word, text]) => `${`encrypt.${word}`.padEnd(23)}- ${text}`),
    'data_file=<str>        - Keep the clusters in this file, which is made, too',
    'data_file_raw=<bool>   - That file stays a raw image',
    'extended_l2=<bool>     - 32 subclusters in each cluster',
    'lazy_refcounts=<bool>  - Postpone refcount updates',
    'preallocation=<str>    - off (default), metadata, or falloc and full, which write zeroes',
    'refcount_bits=<num>    - A power of two from 1 to 64 (default 16)',
    'size=<size>            - Virtual disk size',
  ],
  luks: [
    ...ENCRYPTION_HELP.map(([word, text]) => `${word.padEnd(23)}- ${text}`),
    'size=<size>            - Virtual disk size',
  ],
  vpc: [
    'force_size=<bool>      - Exactly this size, rather than a whole geometry',
    'size=<size>            - Virtual disk size',
    'subformat=<str>        - dynamic (default) or fixed',
  ],
  vmdk: [
    'adapter_type=<str>     - ide (default), buslogic, lsilogic or legacyESX',
    'compat6=<bool>         - hwversion=6',
    'hwversion=<num>        - Version of the virtual hardware (default 4)',
    'size=<size>            - Virtual disk size',
    'subformat=<str>        - monolithicSparse (default) or streamOptimized (convert only)',
  ],
};

/** Decides on a new image by its options. @throws UsageError */
export function planTarget({ format, sizeBytes, options, backing: given, name, ...rest }: TargetOptions): Target {
  const { secrets = new Secrets('--object', []) } = rest;
  const keys = new KeyValues('-o', options === '' ? `size=${sizeBytes}` : options);
  const size = keys.take('size');
  const wanted = size === undefined ? sizeBytes : parseSize(size, '-o size=');
  const preallocation = keys.oneOf('preallocation', PREALLOCATIONS[format] ?? ['off'], 'off');
  let target: Target;
  switch (format) {
    case 'raw':
      target = rawTarget(wanted, preallocation !== 'off');
      break;
    case 'qcow2':
      target = qcow2Target(keys, wanted, given, preallocation, secrets);
      break;
    case 'luks':
      target = luksTarget(keys, wanted, secrets);
      break;
    case 'vpc': {
      const type = keys.oneOf('subformat', ['dynamic', 'fixed'], 'dynamic');
      const forceSize = keys.flag('force_size', false);
      const create = { sizeBytes: wanted, type, forceSize };
      const description = `fmt=vpc size=${wanted}${type === 'fixed' ? ' subformat=fixed' : ''}${forceSize ? ' force_size=on' : ''}`;
      target = {
        sizeBytes: vhdDiskBytes(create),
        description,
        compressed: false,
        create: (path) => createVhd(path, create),
      };
      break;
    }
    case 'vmdk': {
      const type = keys.oneOf('subformat', ['monolithicSparse', 'streamOptimized'], 'monolithicSparse');
      const adapterType = keys.oneOf('adapter_type', VMDK_ADAPTERS, 'ide');
      const create = {
        sizeBytes: wanted,
        type,
        adapterType,
        hardwareVersion: takeHardwareVersion(keys),
        ...(name === undefined ? {} : { name }),
      };
      target = {
        sizeBytes: Math.ceil(wanted / 512) * 512,
        description: `fmt=vmdk size=${wanted} subformat=${type}`,
        compressed: type === 'streamOptimized',
        create: (path) => createVmdk(path, create),
      };
      break;
    }
    case 'vhdx':
      throw new UsageError(`Cannot make images of format vhdx: it is only read; expected ${TARGET_FORMATS.join(', ')}`);
  }
  keys.end();
  if (given !== undefined && format !== 'qcow2') {
    throw new UsageError(`Cannot put a backing file under an image of format ${format}: only qcow2 takes one`);
  }
  return target;
}

/** @throws UsageError */
function takeHardwareVersion(keys: KeyValues): number {
  const compat6 = keys.flag('compat6', false);
  const version = keys.take('hwversion');
  if (version === undefined || version === 'undefined') return compat6 ? 6 : 4;
  if (compat6) throw new UsageError('Cannot use -o compat6=on with hwversion=: both say the version');
  if (!/^\d{1,2}$/.test(version)) throw new UsageError(`Cannot use -o with hwversion=${version}: expected a number`);
  return Number(version);
}

function rawTarget(sizeBytes: number, full: boolean): Target {
  return {
    sizeBytes,
    description: `fmt=raw size=${sizeBytes}`,
    compressed: false,
    create: async (path) => {
      writeFileSync(path, '', { flag: 'wx' });
      truncateSync(path, sizeBytes);
      if (full) await fillRaw(path, 0);
    },
  };
}

function luksTarget(keys: KeyValues, sizeBytes: number, secrets: Secrets): Target {
  const encryption = takeEncryption(keys, '', secrets);
  if (encryption === undefined) {
    throw new UsageError('Cannot make a luks image: -o key-secret= is missing, which names an --object secret');
  }
  return {
    sizeBytes: Math.ceil(sizeBytes / 512) * 512,
    description: `fmt=luks size=${sizeBytes}${encryption.description}`,
    compressed: false,
    passphrase: encryption.passphrase,
    create: (path) => createLuks(path, sizeBytes, encryption.create),
  };
}

/** A plain number, decimal or hexadecimal: no size. @throws UsageError */
export function takeRefcountBits(keys: KeyValues): number | undefined {
  const bits = keys.take('refcount_bits');
  if (bits === undefined) return undefined;
  if (!/^(?:\d{1,9}|0x[0-9a-f]{1,8})$/i.test(bits)) {
    throw new UsageError(`Cannot use -o refcount_bits=${bits}: expected a number`);
  }
  const number = Number(bits);
  if (Number.isInteger(Math.log2(number)) && number <= 64) return number;
  throw new UsageError(`Cannot use -o refcount_bits=${bits}: expected a power of two from 1 to 64`);
}

function qcow2Encryption(keys: KeyValues, secrets: Secrets): TargetEncryption | undefined {
  const kind = keys.take('encrypt.format');
  if (kind !== undefined && kind !== 'luks') {
    throw new UsageError(
      `Cannot use -o encrypt.format=${kind}: expected luks${kind === 'aes' ? '; the old method protects nothing' : ''}`,
    );
  }
  const encryption = takeEncryption(keys, 'encrypt.', secrets);
  if ((kind === undefined) !== (encryption === undefined)) {
    throw new UsageError('Cannot encrypt a qcow2 image: expected both -o encrypt.format=luks and encrypt.key-secret=');
  }
  return encryption;
}

function qcow2Target(
  keys: KeyValues,
  sizeBytes: number,
  given: TargetOptions['backing'],
  preallocation: Preallocation,
  secrets: Secrets,
): Target {
  const number = (key: string, otherwise: number): number => {
    const value = keys.take(key);
    return value === undefined ? otherwise : parseSize(value, `-o ${key}=`);
  };
  const file = keys.take('backing_file') ?? given?.file;
  const format = keys.take('backing_fmt') ?? given?.format;
  if (file !== undefined && format === undefined) {
    throw new UsageError(`Cannot put ${file} under the image: its format is not given, and never guessed; add -F`);
  }
  const dataFile = keys.take('data_file');
  const rawData = keys.flag('data_file_raw', false);
  if (rawData && dataFile === undefined) throw new UsageError('Cannot use -o data_file_raw=on without data_file=');
  const compat = keys.oneOf('compat', ['1.1', 'v3', '0.10', 'v2'], '1.1');
  const old = compat === '0.10' || compat === 'v2';
  const create = {
    sizeBytes,
    clusterBytes: number('cluster_size', 65_536),
    version: old ? (2 as const) : (3 as const),
    refcountBits: takeRefcountBits(keys) ?? 16,
    compression: keys.oneOf('compression_type', ['zlib', 'zstd'], 'zlib'),
    extendedL2: keys.flag('extended_l2', false),
    lazyRefcounts: keys.flag('lazy_refcounts', false),
    ...(file === undefined || format === undefined ? {} : { backing: { file, format } }),
    ...(dataFile === undefined ? {} : { dataFile: { file: dataFile, raw: rawData } }),
  };
  const encryption = qcow2Encryption(keys, secrets);
  if (file !== undefined && preallocation !== 'off') {
    throw new UsageError(`Cannot use -o preallocation=${preallocation} with a backing file: it would hide that`);
  }
  const under = file === undefined ? '' : ` backing_file=${file} backing_fmt=${format}`;
  const flag = (value: boolean) => (value ? 'on' : 'off');
  const encrypted = encryption === undefined ? '' : ` encrypt.format=luks${encryption.description}`;
  const description = `fmt=qcow2${encrypted} cluster_size=${create.clusterBytes} extended_l2=${flag(create.extendedL2)} compression_type=${create.compression} size=${sizeBytes}${under}${dataFile === undefined ? '' : ` data_file=${dataFile}`}${rawData ? ' data_file_raw=on' : ''} lazy_refcounts=${flag(create.lazyRefcounts)} refcount_bits=${create.refcountBits}`;
  return {
    sizeBytes: Math.ceil(sizeBytes / 512) * 512,
    description,
    compressed: false,
    ...(encryption === undefined ? {} : { passphrase: encryption.passphrase }),
    ...(dataFile === undefined ? {} : { dataFile }),
    create: async (path) => {
      const luksHeader = encryption === undefined ? {} : { luksHeader: await createLuksHeader(encryption.create) };
      await createQcow2(path, { ...create, ...luksHeader });
      const data = dataFile === undefined ? undefined : dataFileAt(path, dataFile);
      if (data !== undefined) {
        writeFileSync(data, '');
        truncateSync(data, create.sizeBytes);
      }
      const parts = {
        ...(data === undefined ? {} : { dataFile: { path: data } }),
        ...(encryption === undefined ? {} : { passphrase: encryption.passphrase }),
      };
      if (preallocation !== 'off') await preallocate({ path, format: 'qcow2', ...parts }, preallocation);
    },
  };
}

/** Real zeroes from `from` to the end, so that the host's space is taken. */
export async function fillRaw(path: string, from: number): Promise<void> {
  const image = await RawImage.open(path, { readOnly: false, lock: false });
  try {
    await fillWithZeroes(image, from);
  } finally {
    await image.close();
  }
}

export async function fillWithZeroes(image: DiskImage, from: number): Promise<void> {
  const piece = new Uint8Array(PIECE_BYTES);
  for (let at = from; at < image.sizeBytes; at += piece.length) {
    await image.write(at, piece.subarray(0, Math.min(piece.length, image.sizeBytes - at)));
  }
  await image.flush();
}

/** A relative name counts from the image's folder. */
export function dataFileAt(path: string, name: string): string {
  return isAbsolute(name) ? name : join(dirname(path), name);
}

async function preallocate(source: ImageSource, mode: 'metadata' | 'falloc' | 'full'): Promise<void> {
  const image = await openImage(source, { readOnly: false, lock: false });
  if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${source.path} as qcow2`);
  try {
    await preallocateQcow2(image, mode);
  } finally {
    await image.close();
  }
}

/**
 * Makes a file at `path` by `make`, under another name beside it until it is finished: what was there before stays as
 * it is when that fails or is interrupted, and whoever has it open keeps it.
 */
export async function replaceFile(path: string, make: (partial: string) => Promise<void>): Promise<void> {
  // A link stays, what it leads to is replaced.
  const target = existsSync(path) ? realpathSync(path) : path;
  const there = making(path, () => lstatSync(target, { throwIfNoEntry: false }));
  if (there !== undefined) {
    if (there.isDirectory()) throw new Error(`Cannot make ${path}: it is a directory (EISDIR)`);
    if (!there.isFile()) throw new Error(`Cannot make ${path}: it is there, and no regular file; see -n`);
    // Whoever may not write to a file may not replace it either, though its folder would allow that.
    making(path, () => accessSync(target, constants.W_OK));
    // Whoever writes to the old file would go on with one that nobody sees.
    const lock = await lockImage(statSync(target));
    await lock.release();
  }
  const partial = `${target}.partial-${process.pid}`;
  const stop = (): void => {
    rmSync(partial, { force: true });
    process.exit(130);
  };
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    await make(partial);
    renameSync(partial, target);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).path === partial) throw notMade(path, error);
    // The user named another file.
    if (error instanceof Error) error.message = error.message.replaceAll(partial, path);
    throw error;
  } finally {
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
    rmSync(partial, { force: true });
  }
}

/** @throws Error that names the new file, and what the system says */
function making<T>(path: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw notMade(path, error);
  }
}

function notMade(path: string, cause: unknown): Error {
  return new Error(`Cannot make ${path}: ${systemReason(cause)}`, { cause });
}
