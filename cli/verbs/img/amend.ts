import { amendQcow2, openImage, Qcow2Image, resizeQcow2 } from '../../../services/nbd/images/mod.ts';
import { KeyValues } from '../../key_value.ts';
import { parseSize, type Subcommand } from './grammar.ts';
import { mergedOptions } from './option_list.ts';
import { printLines } from './output.ts';
import { formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

const HELP = [
  'compat=<str>           - 1.1, or 0.10: with zeroes written out where an image is under this one',
  'lazy_refcounts=<bool>  - Postpone refcount updates',
  'refcount_bits=<num>    - A power of two from 1 to 64',
  'size=<size>            - A larger disk',
  'data_file=<str>        - Another name for the data file',
  'data_file_raw=off      - The data file need not stay a raw image',
];

export const amendCommand: Subcommand = {
  name: 'amend',
  summary: 'change options of a qcow2 that is there',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    {
      short: 'o',
      value: 'OPTIONS',
      help: 'compat=1.1|0.10, refcount_bits=N, lazy_refcounts=on|off, size=SIZE, data_file=NAME; others: by convert',
      repeats: true,
    },
    { short: 'p', help: 'accepted: it is done at once' },
    ...SHARED_OPTIONS,
  ],
  text: `Changes options of a qcow2; the disk and its snapshots read as before. A new version or other refcounts are in the
image at once, or not at all.`,
  examples: `  caisson img amend -f qcow2 -o compat=1.1,lazy_refcounts=on disk.qcow2
  caisson img amend -f qcow2 -o compat=0.10 disk.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    if (format !== 'qcow2') throw given.usage(`images of format ${format} have no options; qcow2 has`);
    const options = mergedOptions(given);
    if (options === undefined) {
      printLines('Options that can be changed:', ...HELP.map((line) => `  ${line}`));
      return 0;
    }
    if (options === '') throw given.usage('its -o is missing: compat=1.1 or lazy_refcounts=on|off');
    const keys = new KeyValues('-o', options);
    const compat = keys.oneOf('compat', ['', '1.1', 'v3', '0.10', 'v2'], '');
    const version = compat === '' ? {} : { version: compat === '1.1' || compat === 'v3' ? (3 as const) : (2 as const) };
    const bits = keys.take('refcount_bits');
    if (bits !== undefined && !/^\d{1,2}$/.test(bits)) {
      throw given.usage(`refcount_bits=${bits}: expected a power of two from 1 to 64`);
    }
    const lazy = keys.take('lazy_refcounts') === undefined ? undefined : keys.flag('lazy_refcounts', false);
    const backing = keys.take('backing_file');
    keys.take('backing_fmt');
    const dataFile = keys.take('data_file');
    const rawData = keys.take('data_file_raw') === undefined ? undefined : keys.flag('data_file_raw', false);
    if (rawData === true) throw given.usage('data_file_raw=on is for a new image');
    const size = keys.take('size');
    const sizeBytes = size === undefined ? undefined : Math.ceil(parseSize(size, '-o size=') / 512) * 512;
    keys.end();
    const source = await sourceOf(given, path, format);
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      if (backing !== undefined && backing !== image.header.backingFile) {
        throw given.usage('backing_file= would be another one; see caisson img rebase');
      }
      if (sizeBytes !== undefined && sizeBytes < image.sizeBytes) {
        throw given.usage(`size=${sizeBytes} is less than the disk has; see caisson img resize --shrink`);
      }
      await amendQcow2(image, {
        ...version,
        ...(bits === undefined ? {} : { refcountBits: Number(bits) }),
        ...(dataFile === undefined ? {} : { dataFile }),
        ...(rawData === undefined ? {} : { rawData }),
        ...(lazy === undefined ? {} : { lazyRefcounts: lazy }),
      });
      if (sizeBytes !== undefined) await resizeQcow2(image, sizeBytes);
    } finally {
      await image.close();
    }
    return 0;
  },
};
