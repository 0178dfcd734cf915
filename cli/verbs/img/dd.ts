import { type DiskImage, ReadOnlyImage } from '../../../services/nbd/images/mod.ts';
import { didYouMean } from '../../suggest.ts';
import { write } from './convert.ts';
import { parseSize, type Subcommand } from './grammar.ts';
import { formatOf, knownFormat, openSource, SHARED_OPTIONS, SOURCE_OPTIONS, sameFile } from './source.ts';
import { TARGET_FORMATS } from './target.ts';

const KEYS = ['if', 'of', 'bs', 'count', 'skip'] as const;

/** QEMU's limit */
const MAX_BLOCK_BYTES = 2 ** 31 - 1;

export const ddCommand: Subcommand = {
  name: 'dd',
  summary: 'copy a part of an image',
  operands: 'if=FILE of=FILE [bs=SIZE] [count=N] [skip=N]',
  options: [
    ...SOURCE_OPTIONS,
    { short: 'O', value: 'FMT', help: `format of the new image, ${TARGET_FORMATS.join(', ')} (default raw)` },
    ...SHARED_OPTIONS,
  ],
  text: `Copies count blocks of bs bytes (default 512), from the block skip on, to a new image of just that size.`,
  examples: `  caisson img dd -f qcow2 if=disk.qcow2 of=bootsector.raw bs=512 count=1
  caisson img dd -f raw -O qcow2 if=disk.raw of=part.qcow2 bs=1M skip=1 count=100`,
  async run(given) {
    const values = new Map<string, string>();
    for (const operand of given.operands) {
      const equals = operand.indexOf('=');
      const key = operand.slice(0, Math.max(0, equals));
      if (!KEYS.some((known) => known === key)) {
        throw given.usage(
          `${operand} is unknown, expected ${KEYS.map((known) => `${known}=`).join(' ')}${didYouMean(key, KEYS)}`,
        );
      }
      if (values.has(key) && !given.asQemu) throw given.usage(`${key}= comes twice`);
      values.set(key, operand.slice(equals + 1));
    }
    const source = values.get('if');
    const target = values.get('of');
    if (source === undefined || target === undefined) {
      throw given.usage(`${source === undefined ? 'if' : 'of'}=FILE is missing`);
    }
    const number = (key: 'count' | 'skip'): number | undefined => {
      const text = values.get(key);
      return text === undefined ? undefined : parseSize(text, `${key}=`);
    };
    const blockBytes = parseSize(values.get('bs') ?? '512', 'bs=');
    if (blockBytes === 0 || blockBytes > MAX_BLOCK_BYTES) {
      throw given.usage(`bs=${blockBytes}: expected at least one byte, and at most ${MAX_BLOCK_BYTES}`);
    }
    const outFormat = knownFormat(given, given.text('O') ?? 'raw');
    const { image, layers } = await openSource(given, source, formatOf(given, 'f', source));
    try {
      const start = Math.min((number('skip') ?? 0) * blockBytes, image.sizeBytes);
      const count = number('count');
      const end = count === undefined ? image.sizeBytes : Math.min(image.sizeBytes, start + count * blockBytes);
      if (sameFile(layers, target)) throw given.usage(`${target} is one of the files that are read`);
      await write(given, [new PartOfImage(image, start, end - start)], target, outFormat, '');
    } finally {
      await image.close();
    }
    return 0;
  },
};

/** A part of another disk, for reading. */
class PartOfImage extends ReadOnlyImage {
  readonly sizeBytes: number;
  readonly #image: DiskImage;
  readonly #start: number;

  constructor(image: DiskImage, start: number, sizeBytes: number) {
    super('a part of another image');
    this.#image = image;
    this.#start = start;
    this.sizeBytes = sizeBytes;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#image.read(this.#start + offset, into);
  }
  override readNow(offset: number, into: Uint8Array): boolean {
    return this.#image.readNow(this.#start + offset, into);
  }
  blockStatus(offset: number, lengthBytes: number, maxExtents: number) {
    return this.#image.blockStatus(this.#start + offset, lengthBytes, maxExtents);
  }
}
