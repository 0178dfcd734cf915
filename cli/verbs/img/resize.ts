import { statSync, truncateSync } from 'node:fs';
import { lockImage, openImage, Qcow2Image, resizeQcow2 } from '../../../services/nbd/images/mod.ts';
import { type Given, parseSize, type Subcommand, wholeSectors } from './grammar.ts';
import { imageInfo } from './image_info.ts';
import { printLines } from './output.ts';
import { formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';
import { fillRaw, fillWithZeroes } from './target.ts';

export const resizeCommand: Subcommand = {
  name: 'resize',
  summary: 'make a disk larger or smaller',
  operands: 'FILE [+|-]SIZE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    {
      long: 'preallocation',
      value: 'MODE',
      help: 'of what is new: off (default), metadata (qcow2), or falloc and full, which write zeroes',
    },
    { long: 'shrink', help: 'a smaller size is meant: what is behind it is lost' },
    ...SHARED_OPTIONS,
  ],
  text: `Gives a disk another size, or with + or - so much more or less. What is new reads as zeroes. The guest's partitions and
file systems stay as they are: let the guest grow them after, or shrink them before. For raw and qcow2.`,
  examples: `  caisson img resize -f raw disk.raw +10G
  caisson img resize -f qcow2 disk.qcow2 40G
  caisson img resize -f raw --shrink disk.raw 5G`,
  async run(given) {
    const [path, text] = given.expect('FILE', 'SIZE') as [string, string];
    const format = formatOf(given, 'f', path);
    const before = (await withAdvice(path, () => imageInfo(path, format)))['virtual-size'];
    const sign = /^[+-]/.exec(text)?.[0];
    const size = parseSize(sign === undefined ? text : text.slice(1), 'the new SIZE');
    const after = sign === '+' ? before + size : sign === '-' ? before - size : size;
    if (after <= 0) throw given.usage(`the disk has ${before} bytes; that would leave ${after}`);
    if (after < before && !given.has('shrink')) {
      throw given.usage(`the disk has ${before} bytes; if what is behind ${after} may be lost, add --shrink`);
    }
    if (format === 'qcow2') wholeSectors(given, after);
    const mode = given.oneOf('preallocation', MODES, 'off');
    if (mode !== 'off' && after <= before) throw given.usage('--preallocation is for a larger size');
    if (mode === 'metadata' && format === 'raw') throw given.usage('raw images have no metadata to preallocate');
    if (format === 'qcow2') await resizeInside(given, path, after, mode);
    else if (format === 'raw') await resizeFile(path, before, after, mode);
    else
      throw new Error(`Cannot resize ${path}: disks of format ${format} keep their size; convert it to qcow2 or raw`);
    if (!given.has('q')) printLines('Image resized.');
    return 0;
  },
};

const MODES = ['off', 'metadata', 'falloc', 'full'] as const;
type Mode = (typeof MODES)[number];

async function resizeFile(path: string, oldBytes: number, sizeBytes: number, mode: Mode): Promise<void> {
  const stats = statSync(path);
  if (!stats.isFile()) throw new Error(`Cannot resize ${path}: not a regular file`);
  const lock = await lockImage(stats);
  try {
    truncateSync(path, sizeBytes);
    if (mode === 'off') return;
    await fillRaw(path, oldBytes);
  } finally {
    await lock.release();
  }
}

async function resizeInside(given: Given, path: string, sizeBytes: number, mode: Mode): Promise<void> {
  const source = await sourceOf(given, path, 'qcow2');
  const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
  try {
    if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
    const before = image.sizeBytes;
    await resizeQcow2(image, sizeBytes, { shrink: given.has('shrink') });
    if (mode === 'metadata') await image.preallocate(before, image.sizeBytes - before);
    else if (mode !== 'off') await fillWithZeroes(image, before);
    await image.flush();
    if (image.sizeBytes < before) await image.releaseSpace();
  } finally {
    await image.close();
  }
}
