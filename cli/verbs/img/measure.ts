import { luksMaterialOffset } from '../../../protocols/luks/mod.ts';
import { STATE } from '../../../protocols/nbd/mod.ts';
import { QCOW2_LIMITS, type Qcow2Bitmap } from '../../../protocols/qcow2/mod.ts';
import { type DiskImage, inspectQcow2, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import { KeyValues } from '../../key_value.ts';
import { type Given, parseSize, type Subcommand } from './grammar.ts';
import { printJson, printLines } from './output.ts';
import { formatOf, openSource, SHARED_OPTIONS, SOURCE_OPTIONS } from './source.ts';
import { planTarget, takeRefcountBits } from './target.ts';

const MAX_EXTENTS = 1024;
const STATUS_BYTES = 1 << 30;
const TARGETS = ['raw', 'qcow2', 'luks'] as const;
const ENCRYPTION_KEYS = [
  'key-secret',
  'iter-time',
  'cipher-alg',
  'cipher-mode',
  'ivgen-alg',
  'ivgen-hash-alg',
  'hash-alg',
];
const MIN_EXTENDED_BYTES = 2 ** QCOW2_LIMITS.minExtendedClusterBits;
/** Header and key material of the LUKS that is made here, in `bytes` */
const LUKS_BYTES = luksMaterialOffset(8, 64);

export const measureCommand: Subcommand = {
  name: 'measure',
  summary: 'how much space an image will need',
  operands: '[FILE]',
  options: [
    ...SOURCE_OPTIONS,
    { short: 'O', value: 'FMT', help: 'format of the image to be made, raw, qcow2 or luks (default raw)' },
    { short: 'o', value: 'OPTIONS', help: 'options of that, as with convert', repeats: true },
    { short: 'l', value: 'SNAPSHOT', help: 'not the disk as it is, but this snapshot inside FILE: its id or name' },
    { long: 'size', value: 'SIZE', help: 'of an empty disk of this size, instead of FILE' },
    { long: 'output', value: 'human|json', help: 'json has the keys of qemu-img measure (default human)' },
    ...SHARED_OPTIONS,
  ],
  text: `Says how large a file will be: now, and when the guest has written everywhere.`,
  examples: `  caisson img measure -f raw -O qcow2 disk.raw
  caisson img measure --size=20G -O qcow2 -o cluster_size=2M`,
  async run(given) {
    const target = given.oneOf('O', TARGETS, 'raw');
    const output = given.oneOf('output', ['human', 'json'], 'human');
    const size = given.size('size');
    if (size !== undefined && given.operands.length > 0) throw given.usage('--size and FILE exclude each other');
    if (given.operands.length === 0) {
      if (['image-opts', 'f', 'l'].some((name) => given.has(name))) {
        throw given.usage('--image-opts, -f and -l are for a FILE, which is missing');
      }
      if (size === undefined) throw given.usage('neither a FILE nor --size is given');
    }
    const measured = size === undefined ? await ofFile(given, target) : await measure(given, target, size, undefined);
    if (output === 'json') printJson(measured);
    else {
      printLines(`required size: ${measured.required}`, `fully allocated size: ${measured['fully-allocated']}`);
      if (measured.bitmaps !== undefined) printLines(`bitmaps size: ${measured.bitmaps}`);
    }
    return 0;
  },
};

interface Measured {
  /** With --bitmaps, beyond what is required */
  readonly bitmaps?: number;
  readonly required: number;
  readonly 'fully-allocated': number;
}

async function ofFile(given: Given, target: (typeof TARGETS)[number]): Promise<Measured> {
  const [path] = given.expect('FILE') as [string];
  const snapshot = given.text('l')?.replace(/^snapshot\.(?:name|id)=/, '');
  const format = formatOf(given, 'f', path);
  const { image } = await openSource(given, path, format, snapshot === undefined ? {} : { snapshot });
  try {
    const measured = await measure(given, target, image.sizeBytes, image);
    if (target !== 'qcow2' || !(image instanceof Qcow2Image) || image.header.version === 2) return measured;
    const { compat, clusterBytes } = targetKeys(given);
    // As qemu-img's JSON has it: the bitmaps first.
    return compat === 2
      ? measured
      : { bitmaps: bitmapBytes((await inspectQcow2(path)).bitmaps, image.sizeBytes, clusterBytes), ...measured };
  } finally {
    await image.close();
  }
}

async function measure(
  given: Given,
  target: (typeof TARGETS)[number],
  sizeBytes: number,
  image: DiskImage | undefined,
): Promise<Measured> {
  const options = given.all('o').join(',');
  if (target === 'raw') {
    planTarget({ format: 'raw', sizeBytes, options });
    const rounded = Math.ceil(sizeBytes / 512) * 512;
    return { required: rounded, 'fully-allocated': rounded };
  }
  if (target === 'luks') {
    // Noise is not sparse.
    const bytes = LUKS_BYTES + Math.ceil(sizeBytes / 512) * 512;
    return { required: bytes, 'fully-allocated': bytes };
  }
  const keys = new KeyValues('-o', options === '' ? 'compat=1.1' : options);
  const number = (key: string, otherwise: number): number => {
    const value = keys.take(key);
    return value === undefined ? otherwise : parseSize(value, `-o ${key}=`);
  };
  const clusterBytes = number('cluster_size', 65_536);
  const refcountBits = takeRefcountBits(keys) ?? 16;
  const entryBytes = keys.flag('extended_l2', false) ? 16 : 8;
  if (targetKeys(given).compat === 2 && refcountBits !== 16) {
    throw given.usage('refcounts of other than 16 bits need version 3, and compat= says 2');
  }
  for (const key of ['compat', 'compression_type', 'lazy_refcounts', 'backing_fmt', 'size']) keys.take(key);
  const hasBacking = keys.take('backing_file') !== undefined;
  const encrypted = keys.oneOf('encrypt.format', ['none', 'luks'], 'none') === 'luks';
  for (const key of ENCRYPTION_KEYS) keys.take(`encrypt.${key}`);
  const mode = keys.oneOf('preallocation', ['off', 'metadata', 'falloc', 'full'], 'off');
  const allocated = mode === 'falloc' || mode === 'full';
  keys.end();
  if (!isPowerOfTwo(clusterBytes, 512, 2 << 20))
    throw given.usage(`-o cluster_size=${clusterBytes} is not a power of two`);
  if (entryBytes === 16 && clusterBytes < MIN_EXTENDED_BYTES) {
    throw given.usage(`extended L2 entries need clusters of ${MIN_EXTENDED_BYTES} bytes or more`);
  }
  if (sizeBytes / ((clusterBytes / entryBytes) * clusterBytes) > QCOW2_LIMITS.l1Bytes / 8) {
    throw given.usage(`a disk of ${sizeBytes} bytes is too large for clusters of ${clusterBytes}`);
  }
  if (!isPowerOfTwo(refcountBits, 1, 64)) throw given.usage(`-o refcount_bits=${refcountBits} is not a power of two`);
  const virtual = Math.ceil(sizeBytes / clusterBytes) * clusterBytes;
  const luks = encrypted ? Math.ceil(LUKS_BYTES / clusterBytes) * clusterBytes : 0;
  const full = fullBytes(virtual, clusterBytes, refcountBits, entryBytes) + luks;
  const data = image === undefined ? 0 : await dataBytes(image, clusterBytes);
  // Tables are counted for the whole disk, whatever of it is used: as qemu-img does.
  // Over another image nothing can be left out: that one may have something there.
  return {
    required: allocated || (hasBacking && image !== undefined) ? full : full - virtual + data,
    'fully-allocated': full,
  };
}

function targetKeys(given: Given): { compat: 2 | 3; clusterBytes: number } {
  const options = given.all('o').join(',');
  const keys = new KeyValues('-o', options === '' ? 'compat=1.1' : options);
  const cluster = keys.take('cluster_size');
  const compat = keys.oneOf('compat', ['1.1', 'v3', '0.10', 'v2'], '1.1');
  return {
    compat: compat === '0.10' || compat === 'v2' ? 2 : 3,
    clusterBytes: cluster === undefined ? 65_536 : parseSize(cluster, '-o cluster_size='),
  };
}

/** What all bitmaps take that can be copied, their tables and their directory, none of which is read: in `bytes` */
function bitmapBytes(bitmaps: readonly Qcow2Bitmap[], sizeBytes: number, clusterBytes: number): number {
  const up = (bytes: number) => Math.ceil(bytes / clusterBytes) * clusterBytes;
  let sum = 0;
  let directory = 0;
  for (const { name, inUse, granularityBits } of bitmaps) {
    if (inUse) continue;
    const bits = Math.ceil(sizeBytes / 2 ** granularityBits);
    const data = up(Math.ceil(bits / 8));
    sum += data + up((data / clusterBytes) * 8);
    directory += Math.ceil((24 + Buffer.byteLength(name)) / 8) * 8;
  }
  return sum + up(directory);
}

/** A qcow2 file whose disk is written everywhere, in `bytes`. */
function fullBytes(virtual: number, clusterBytes: number, refcountBits: number, entryBytes: number): number {
  const up = (value: number, unit: number) => Math.ceil(value / unit) * unit;
  const l2Entries = up(virtual / clusterBytes, clusterBytes / entryBytes);
  const l1Entries = up((l2Entries * entryBytes) / clusterBytes, clusterBytes / 8);
  const tables = clusterBytes + l2Entries * entryBytes + l1Entries * 8;
  const clusters = (tables + virtual) / clusterBytes;
  const perBlock = (clusterBytes * 8) / refcountBits;
  let blocks = 0;
  let table = 0;
  for (let before = -1; before !== blocks + table; ) {
    before = blocks + table;
    blocks = Math.ceil((clusters + table + blocks) / perBlock);
    table = Math.ceil(blocks / (clusterBytes / 8));
  }
  return tables + virtual + (blocks + table) * clusterBytes;
}

/** Clusters that hold something else than zeroes, in `bytes`. */
async function dataBytes(image: DiskImage, clusterBytes: number): Promise<number> {
  let sum = 0;
  let countedTo = 0;
  for (let at = 0; at < image.sizeBytes; ) {
    const extents = await image.blockStatus(at, Math.min(STATUS_BYTES, image.sizeBytes - at), MAX_EXTENTS);
    for (const { lengthBytes, flags } of extents) {
      const end = at + lengthBytes;
      if ((flags & STATE.ZERO) === 0) {
        const from = Math.max(countedTo, Math.floor(at / clusterBytes) * clusterBytes);
        countedTo = Math.max(countedTo, Math.ceil(end / clusterBytes) * clusterBytes);
        sum += Math.max(0, countedTo - from);
      }
      at = end;
    }
  }
  return sum;
}

function isPowerOfTwo(value: number, min: number, max: number): boolean {
  return value >= min && value <= max && Number.isInteger(Math.log2(value));
}
