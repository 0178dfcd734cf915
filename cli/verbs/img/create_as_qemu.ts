import { existsSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, resolve } from 'node:path';
import process from 'node:process';
import { guessFormat, ImageError } from '../../../services/nbd/images/mod.ts';
import { KeyValues } from '../../key_value.ts';
import { type Given, parseSize } from './grammar.ts';
import { imageInfo } from './image_info.ts';
import { secretsOf, withoutProtocol } from './image_opts.ts';
import { mergedOptions } from './option_list.ts';
import { printLines } from './output.ts';
import { inQemusWords } from './qemu_words.ts';
import { knownFormat, withAdvice } from './source.ts';
import { planTarget, replaceFile, targetHelp } from './target.ts';

/** Options of each format in the order in which qemu-img shows them, with what they are by themselves */
const SHOWN: Readonly<Record<string, readonly (readonly [key: string, otherwise?: string])[]>> = {
  raw: [['size'], ['preallocation']],
  vpc: [['size'], ['subformat'], ['force_size']],
  vmdk: [
    ['size'],
    ['adapter_type'],
    ['backing_file'],
    ['backing_fmt'],
    ['compat6', 'off'],
    ['hwversion', 'undefined'],
    ['toolsversion'],
    ['subformat'],
    ['zeroed_grain'],
  ],
  qcow2: [
    ['encryption'],
    ['encrypt.format'],
    ['encrypt.key-secret'],
    ['encrypt.iter-time'],
    ['cluster_size', '65536'],
    ['extended_l2', 'off'],
    ['preallocation'],
    ['compression_type', 'zlib'],
    ['size'],
    ['compat'],
    ['backing_file'],
    ['backing_fmt'],
    ['data_file'],
    ['data_file_raw'],
    ['lazy_refcounts', 'off'],
    ['refcount_bits', '16'],
  ],
};
const SIZES = ['cluster_size', 'size'];
const FLAGS = ['lazy_refcounts', 'extended_l2', 'data_file_raw', 'force_size', 'compat6'];
const A_NUMBER = 'expects a number';
const OPTION_SIZE =
  "Parameter 'size' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.";

/**
 * `create` as qemu-img does it: the line that says what is made comes before what can go wrong in making it, and errors
 * have the file's name in front.
 */
export async function createAsQemu(given: Given): Promise<number> {
  const format = knownFormat(given, given.text('f') ?? 'raw');
  const options = mergedOptions(given);
  if (options === undefined) {
    process.stdout.write(targetHelp(format));
    return 0;
  }
  const [shown, sizeWord, ...more] = given.operands;
  const path = shown === undefined ? undefined : withoutProtocol(shown);
  if (path === undefined || shown === undefined) throw given.usage('Expecting image file name');
  if (more.length > 0) throw given.usage(`Unexpected argument: ${more[0]}`);
  const sizeBytes = sizeWord === undefined ? undefined : parseLargeSize(sizeWord, 'SIZE');
  const fail = (text: string): number => {
    process.stderr.write(`qemu-img: ${shown}: ${text}\n`);
    return 1;
  };
  const values = new Map((options === '' ? undefined : new KeyValues('-o', options))?.takeAll());
  if (sizeBytes !== undefined && values.has('size')) return fail('The image size must be specified only once');
  if (sizeBytes !== undefined) values.set('size', String(sizeBytes));
  for (const [key, option] of [['backing_file', 'b'] as const, ['backing_fmt', 'F'] as const]) {
    const word = given.text(option);
    if (word !== undefined) values.set(key, word);
  }
  const file = values.get('backing_file');
  if (file === '') return fail('Expected backing file name, got empty string');
  if (file !== undefined) {
    const at = isAbsolute(file) ? file : join(dirname(path), file);
    if (resolve(at) === resolve(path)) {
      return fail('Error: Trying to create an image with the same filename as the backing file');
    }
    const wrong = await lookBelow(given, values, at);
    if (wrong !== undefined) return fail(wrong);
  }
  if (!values.has('size')) return fail('Image creation needs a size parameter');
  for (const key of SIZES) {
    const word = values.get(key);
    if (word === undefined) continue;
    try {
      values.set(key, String(parseLargeSize(word, key)));
    } catch {
      return fail(key === 'size' ? OPTION_SIZE : OPTION_SIZE.replace("'size'", `'${key}'`));
    }
  }
  const known = SHOWN[format]?.map(([key]) => key);
  const unknown = [...values.keys()].find((key) => known?.includes(key) === false && !key.startsWith('encrypt.'));
  if (unknown !== undefined) return fail(`Invalid parameter '${unknown}'`);
  const bits = values.get('refcount_bits');
  if (bits !== undefined && !/^(?:\d+|0x[0-9a-f]+)$/i.test(bits)) return fail(`Parameter 'refcount_bits' ${A_NUMBER}`);
  if (bits !== undefined) values.set('refcount_bits', String(Number(bits)));
  for (const key of FLAGS) {
    const word = values.get(key);
    if (word === undefined) continue;
    if (!/^(?:on|yes|true|y|off|no|false|n)$/.test(word)) return fail(`Parameter '${key}' expects 'on' or 'off'`);
  }
  if (!given.has('q')) printLines(formatting(shown, format, values));
  if (file === undefined && values.has('backing_fmt'))
    return fail('Backing format cannot be used without backing file');
  if (BigInt(values.get('size')!) > BigInt(Number.MAX_SAFE_INTEGER)) return fail(tooLarge(format));
  try {
    const secrets = secretsOf(given);
    const target = planTarget({ format, sizeBytes: 0, options: joined(values), name: basename(path), secrets });
    await replaceFile(path, target.create);
  } catch (error) {
    return fail(creationError(error, format, values));
  }
  return 0;
}

/** The format and the size of what is under the image, where nobody said; gives what is wrong with it. */
async function lookBelow(given: Given, values: Map<string, string>, at: string): Promise<string | undefined> {
  const word = values.get('backing_fmt');
  if (word === undefined && !existsSync(at)) {
    return `Could not open '${at}': No such file or directory\nCould not open backing image.`;
  }
  if (word === undefined) {
    const guess = guessFormat(at) ?? 'raw';
    return `Backing file specified without backing format\nDetected format of ${guess}.`;
  }
  if (given.has('u')) return undefined;
  try {
    const format = knownFormat(given, word);
    const info = await withAdvice(at, () => imageInfo(at, format));
    if (!values.has('size')) values.set('size', String(info['virtual-size']));
    return undefined;
  } catch (error) {
    return `${inQemusWords(error).replace(/^Could not open '.*?': (?=.)/s, '')}\nCould not open backing image.`;
  }
}

function formatting(path: string, format: string, values: ReadonlyMap<string, string>): string {
  const shown = SHOWN[format] ?? [...values.keys()].map((key): [key: string, otherwise?: string] => [key]);
  const words = shown.flatMap(([key, otherwise]) => {
    const value = values.get(key) ?? otherwise;
    return value === undefined ? [] : [`${key}=${value.replaceAll(',', ',,')}`];
  });
  return `Formatting '${path}', fmt=${format} ${words.join(' ')}`;
}

function joined(values: ReadonlyMap<string, string>): string {
  return [...values].map(([key, value]) => `${key}=${value.replaceAll(',', ',,')}`).join(',');
}

/** Up to 2^64, as QEMU has it: what is too large for a format is told after the line of what is made. @throws UsageError */
function parseLargeSize(text: string, what: string): bigint {
  const match = /^(\d{1,19})([kmgtpe])?$/i.exec(text);
  if (match === null) return BigInt(parseSize(text, what));
  const bytes = BigInt(match[1]!) << BigInt(10 * ' kmgtpe'.indexOf((match[2] ?? ' ').toLowerCase()));
  if (bytes >> 63n !== 0n) return BigInt(parseSize('-', what));
  return bytes;
}

function tooLarge(format: string): string {
  const hint = format === 'qcow2' ? ' (try using a larger cluster size)' : '';
  return `The image size is too large for file format '${format}'${hint}`;
}

/** Names that QEMU gives options behind the command line */
const VISITED: Readonly<Record<string, string>> = { compat: 'version', compression_type: 'compression-type' };

function creationError(error: unknown, format: string, values: ReadonlyMap<string, string>): string {
  const text = error instanceof Error ? error.message : String(error);
  const value = /^Cannot use -o with (\w+)=(.*): expected/.exec(text);
  if (value !== null) {
    const [, key, found] = value;
    return `Parameter '${VISITED[key!] ?? key}' does not accept value '${found}'`;
  }
  if (!(error instanceof ImageError)) {
    return inQemusWords(error).replace(/^Could not open '(.*)': Could not open '\1': /, "Could not create '$1': ");
  }
  const version = 'compatibility level 1.1 and above (use version=v3 or greater)';
  if (text.includes('lazy refcounts and data files need') || text.includes('version 2 has 16 bits')) {
    if (values.has('refcount_bits') && values.get('refcount_bits') !== '16') {
      return `Different refcount widths than 16 bits require ${version.replace('and', 'or')}`;
    }
    if ((values.get('compression_type') ?? 'zlib') !== 'zlib') {
      return `Non-zlib compression type is only supported with ${version}`;
    }
    if (values.get('lazy_refcounts') === 'on') return `Lazy refcounts only supported with ${version}`;
    if (values.has('data_file')) return `External data files are only supported with ${version}`;
    return `Extended L2 entries are only supported with ${version}`;
  }
  if (text.includes('bytes, limit is')) return tooLarge(format);
  if (text.includes('a raw data file has no room')) {
    return 'Backing file and data-file-raw cannot be used at the same time';
  }
  if (text.includes('refcounts of')) return 'Refcount width must be a power of two and may not exceed 64 bits';
  if (text.includes('extended L2 entries with')) {
    return 'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes';
  }
  if (text.includes('expected a power of two from 512')) {
    return 'Cluster size must be a power of two between 512 and 2048k';
  }
  if (text.includes('are too many for clusters of')) return tooLarge(format);
  return inQemusWords(error);
}
