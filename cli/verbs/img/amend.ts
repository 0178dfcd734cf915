import {
  type AddKey,
  amendQcow2,
  changeLuksKeys,
  type EraseKeys,
  type ImageFormat,
  inspectQcow2,
  openImage,
  Qcow2Image,
  resizeQcow2,
} from '../../../services/nbd/images/mod.ts';
import { KeyValues } from '../../key_value.ts';
import { KEY_HELP, takeKeyChange } from './amend_keys.ts';
import { type Given, parseSize, type Subcommand, wholeSectors } from './grammar.ts';
import { imageOptsOf, secretsOf } from './image_opts.ts';
import { mergedOptions } from './option_list.ts';
import { printLines } from './output.ts';
import { CACHE_OPTION, formatOf, knownFormat, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';
import { takeRefcountBits } from './target.ts';

const HELP = [
  'compat=<str>           - 1.1, or 0.10: with zeroes written out where an image is under this one',
  'lazy_refcounts=<bool>  - Postpone refcount updates',
  'refcount_bits=<num>    - A power of two from 1 to 64',
  'size=<size>            - A larger disk; a smaller one with --force',
  'data_file=<str>        - Another name for the data file',
  'data_file_raw=off      - The data file need not stay a raw image',
];

/** Of LUKS, inside of qcow2 with `encrypt.` before it */
function keyHelp(prefix: '' | 'encrypt.'): string[] {
  return KEY_HELP.map(([key, help]) => `${`${prefix}${key}`.padEnd(26)} - ${help}`);
}

export const amendCommand: Subcommand = {
  name: 'amend',
  summary: 'change options of a qcow2 or the passphrases of a LUKS disk',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    {
      short: 'o',
      value: 'OPTIONS',
      help: 'compat=1.1|0.10, refcount_bits=N, lazy_refcounts=on|off, size=SIZE, data_file=NAME; [encrypt.]state=…; help',
      repeats: true,
    },
    {
      long: 'force',
      help: 'let a disk be made smaller, a key slot in use be overwritten, the last passphrase be erased',
    },
    { short: 'p', help: 'accepted: it is done at once' },
    CACHE_OPTION,
    ...SHARED_OPTIONS,
  ],
  text: `Changes options of a qcow2; the disk and its snapshots read as before. A new version or other refcounts are in the
image at once, or not at all. A passphrase of LUKS is added by state=active,new-secret=ID and erased by state=inactive with
keyslot=N or old-secret=ID; the key of the disk, and all that is on it, stay.`,
  examples: `  caisson img amend -f qcow2 -o compat=1.1,lazy_refcounts=on disk.qcow2
  caisson img amend -f qcow2 -o compat=0.10 disk.qcow2
  caisson img amend --object secret,id=s,file=passphrase --object secret,id=n,file=another \\
    --image-opts -o state=active,new-secret=n driver=luks,file.filename=disk.luks,key-secret=s`,
  async run(given) {
    const options = mergedOptions(given);
    const said = given.text('f');
    // Help needs no image where the format is said.
    const asks = options === undefined && given.operands.length === 0 && said !== undefined;
    const [path = ''] = asks ? [] : given.expect('FILE');
    const format = asks ? knownFormat(given, said) : formatOf(given, 'f', path);
    if (format !== 'qcow2' && format !== 'luks') {
      throw given.usage(`images of format ${format} have no options; qcow2 and luks have`);
    }
    if (options === undefined) {
      const lines = format === 'luks' ? keyHelp('') : [...HELP, ...keyHelp('encrypt.')];
      printLines('Options that can be changed:', ...lines.map((line) => `  ${line}`));
      return 0;
    }
    if (options === '') throw given.usage('its -o is missing: compat=1.1 or lazy_refcounts=on|off');
    const keys = new KeyValues('-o', options);
    const keyChange = takeKeyChange(keys, format === 'luks' ? '' : 'encrypt.', secretsOf(given), given.has('force'));
    if (format === 'luks') {
      keys.end();
      if (keyChange !== undefined) await changeKeys(given, path, format, keyChange);
      return 0;
    }
    const compat = keys.oneOf('compat', ['as it is', '1.1', 'v3', '0.10', 'v2'], 'as it is');
    const version: { version?: 2 | 3 } =
      compat === 'as it is' ? {} : { version: compat === '1.1' || compat === 'v3' ? 3 : 2 };
    const refcountBits = takeRefcountBits(keys);
    const lazy = keys.take('lazy_refcounts') === undefined ? undefined : keys.flag('lazy_refcounts', false);
    const backing = keys.take('backing_file');
    const backingFormat = keys.take('backing_fmt');
    const dataFile = keys.take('data_file');
    const rawData = keys.take('data_file_raw') === undefined ? undefined : keys.flag('data_file_raw', false);
    if (rawData === true) throw given.usage('data_file_raw=on is for a new image');
    const size = keys.take('size');
    const sizeBytes = size === undefined ? undefined : wholeSectors(given, parseSize(size, '-o size='));
    keys.end();
    // After all else, which opens the image by the passphrase that may be erased.
    if (!/(?:^|,)(?!encrypt\.)/.test(options)) {
      if (keyChange !== undefined) await changeKeys(given, path, format, keyChange);
      return 0;
    }
    const source = await sourceOf(given, path, format);
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      const { backingFile, backingFormat: formatThere } = image.header;
      if ((backing ?? backingFile) !== backingFile || (backingFormat ?? formatThere) !== formatThere) {
        throw given.usage('backing_file= would be another one; see caisson img rebase');
      }
      const shrink = sizeBytes !== undefined && sizeBytes < image.sizeBytes;
      // qemu-img asks for nothing here.
      if (shrink && !given.has('force') && !given.asQemu) {
        throw given.usage(`size=${sizeBytes} is less than the disk has; if what is behind may be lost, add --force`);
      }
      const resize = async (): Promise<void> => {
        if (sizeBytes !== undefined) await resizeQcow2(image, sizeBytes, { shrink });
      };
      // Version 2 keeps no snapshots of another size: it may be this size that makes them alike.
      if (version.version === 2) await resize();
      await amendQcow2(image, {
        ...version,
        ...(refcountBits === undefined ? {} : { refcountBits }),
        ...(dataFile === undefined ? {} : { dataFile }),
        ...(rawData === undefined || image.header.dataFile === undefined ? {} : { rawData }),
        ...(lazy === undefined ? {} : { lazyRefcounts: lazy }),
      });
      if (version.version !== 2) await resize();
      if (shrink) await image.releaseSpace();
    } finally {
      await image.close();
    }
    if (keyChange !== undefined) await changeKeys(given, path, format, keyChange);
    return 0;
  },
};

/** @throws ImageError where the disk is not encrypted, or not by the passphrase that was named with it */
async function changeKeys(given: Given, path: string, format: ImageFormat, change: AddKey | EraseKeys): Promise<void> {
  const passphrase = imageOptsOf(given, path)?.passphrase;
  if (passphrase === undefined) {
    const word = format === 'luks' ? 'key-secret' : 'encrypt.key-secret';
    throw given.usage(
      `a passphrase of the disk is needed: --image-opts driver=${format},file.filename=FILE,${word}=ID`,
    );
  }
  const secret = new TextEncoder().encode(passphrase);
  if (format === 'luks') return changeLuksKeys(path, secret, change);
  const { header } = await inspectQcow2(path);
  if (header.encryptionHeader === undefined) throw given.usage(`${path} is not encrypted`);
  return changeLuksKeys(path, secret, change, header.encryptionHeader);
}
