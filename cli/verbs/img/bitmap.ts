import { DirtyBitmap, openImage, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import { UsageError } from '../../usage_error.ts';
import type { Given, Subcommand } from './grammar.ts';
import { inQemusWords } from './qemu_words.ts';
import { formatOf, openSource, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

const ACTIONS = ['add', 'remove', 'clear', 'enable', 'disable', 'merge'] as const;
/** Of what a bit stands for by itself, in `bytes` */
const MIN_DEFAULT_BYTES = 4096;
const MAX_DEFAULT_BYTES = 65_536;
type Action = (typeof ACTIONS)[number];

export const bitmapCommand: Subcommand = {
  name: 'bitmap',
  summary: 'add, remove, clear or merge dirty bitmaps inside a qcow2',
  operands: 'FILE NAME',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    { long: 'add', help: 'a new one, which records from now on' },
    { long: 'remove', help: 'it is gone; the only thing to do with one that was not written back' },
    { long: 'clear', help: 'nothing is dirty in it' },
    { long: 'enable', help: 'it records' },
    { long: 'disable', help: 'it stays as it is, whatever is written' },
    { long: 'merge', value: 'NAME2', help: 'what is dirty in that one is dirty in NAME, too', repeats: true },
    { short: 'b', value: 'FILE2', help: 'the image that has NAME2 (default: FILE)' },
    { short: 'F', value: 'FMT', help: 'format of FILE2' },
    {
      short: 'g',
      long: 'granularity',
      value: 'SIZE',
      help: 'with --add: a bit stands for so much (default a cluster, 4k to 64k)',
    },
    ...SHARED_OPTIONS,
  ],
  text: 'Changes the dirty bitmaps that a qcow2 keeps. Several actions are done in the order in which they are given.',
  examples: `  caisson img bitmap --add -g 1M -f qcow2 disk.qcow2 monday
  caisson img bitmap --merge monday -f qcow2 disk.qcow2 week
  caisson img bitmap --remove -f qcow2 disk.qcow2 monday`,
  async run(given) {
    const [path, name] = given.expect('FILE', 'NAME') as [string, string];
    const actions = given.order.filter((word): word is Action => ACTIONS.some((action) => action === word));
    if (actions.length === 0) throw given.usage(`none of --${ACTIONS.join(', --')} is given`);
    if (given.has('b') && !given.has('merge')) throw given.usage('-b is for --merge');
    if (given.has('granularity') && !given.has('add')) throw given.usage('-g is for --add');
    if (given.has('F') && !given.has('b')) throw given.usage('-F is for -b');
    const format = formatOf(given, 'f', path);
    if (format !== 'qcow2') throw given.usage(`images of format ${format} keep no bitmaps; qcow2 does`);
    const source = await sourceOf(given, path, format);
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      if (image.header.version === 2) {
        throw new Error(`Cannot keep bitmaps in ${path}: they need version 3, see caisson img amend -o compat=1.1`);
      }
      const merged = [...given.all('merge')];
      for (const action of actions) {
        try {
          await act(given, image, name, action, merged);
        } catch (error) {
          // As qemu-img, which says what it was at.
          if (given.asQemu && !(error instanceof UsageError)) {
            throw new Error(`Operation ${action} on bitmap ${name} failed: ${inQemusWords(error)}`, { cause: error });
          }
          throw error;
        }
      }
      await image.touchBitmaps();
    } finally {
      await image.close();
    }
    return 0;
  },
};

async function act(given: Given, image: Qcow2Image, name: string, action: Action, merged: string[]): Promise<void> {
  const { bitmaps } = image;
  if (action === 'add') {
    // As qemu-img: 0 is the default, and that follows the clusters.
    const byClusters = Math.min(Math.max(image.header.clusterBytes, MIN_DEFAULT_BYTES), MAX_DEFAULT_BYTES);
    const granularityBytes = given.size('granularity') || byClusters;
    const disabled = given.has('disable');
    bitmaps.add(name, new DirtyBitmap(image.sizeBytes, granularityBytes, { persistent: true, disabled }));
    return;
  }
  if (action === 'remove') {
    if (!bitmaps.remove(name)) bitmaps.get(name);
    return;
  }
  const bitmap = bitmaps.get(name);
  if (bitmap.inconsistent) {
    throw new Error(`Cannot ${action} bitmap ${JSON.stringify(name)}: it was not written back; --remove it`);
  }
  if (action === 'clear') bitmap.clear();
  else if (action === 'merge') await merge(given, image, bitmap, merged.shift()!);
  else bitmap.recording = action === 'enable';
}

/** From FILE2, which nobody may be writing, or from the image itself. */
async function merge(given: Given, image: Qcow2Image, into: DirtyBitmap, from: string): Promise<void> {
  const path = given.text('b');
  if (path === undefined) return into.merge(image.bitmaps.get(from));
  const other = await openSource(given, path, given.has('F') ? formatOf(given, 'F', path) : 'qcow2');
  try {
    if (!(other.image instanceof Qcow2Image)) throw given.usage(`${path} keeps no bitmaps; qcow2 does`);
    into.merge(other.image.bitmaps.get(from));
  } finally {
    await other.image.close();
  }
}
