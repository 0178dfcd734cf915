import { statSync, truncateSync } from 'node:fs';
import { lockImage } from '../../../services/nbd/images/mod.ts';
import { parseSize, type Subcommand } from './grammar.ts';
import { imageInfo } from './image_info.ts';
import { printLines } from './output.ts';
import { formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, withAdvice } from './source.ts';

export const resizeCommand: Subcommand = {
  name: 'resize',
  summary: 'make a disk larger or smaller',
  operands: 'FILE [+|-]SIZE',
  options: [
    ...SOURCE_OPTIONS.filter(({ short }) => short === 'f'),
    { long: 'shrink', help: 'a smaller size is meant: what is behind it is lost' },
    ...SHARED_OPTIONS,
  ],
  text: `Gives a disk another size, or with + or - so much more or less. What is new reads as zeroes. The guest's partitions and
file systems stay as they are: let the guest grow them after, or shrink them before. For raw images.`,
  examples: `  caisson img resize -f raw disk.raw +10G
  caisson img resize -f raw --shrink disk.raw 5G`,
  async run(given) {
    const [path, text] = given.expect('FILE', 'SIZE') as [string, string];
    const format = formatOf(given, 'f', path);
    const before = (await withAdvice(path, () => imageInfo(path, format)))['virtual-size'];
    const sign = /^[+-]/.exec(text)?.[0];
    const size = parseSize(sign === undefined ? text : text.slice(1), 'SIZE');
    const after = sign === '+' ? before + size : sign === '-' ? before - size : size;
    if (after <= 0) throw given.usage(`the disk has ${before} bytes; that would leave ${after}`);
    if (after < before && !given.has('shrink')) {
      throw given.usage(`the disk has ${before} bytes; if what is behind ${after} may be lost, add --shrink`);
    }
    if (format !== 'raw') {
      throw new Error(
        `Cannot resize ${path}: images of format ${format} keep their size here; convert it to raw first`,
      );
    }
    if (!statSync(path).isFile()) throw new Error(`Cannot resize ${path}: not a regular file`);
    const lock = await lockImage(statSync(path));
    try {
      truncateSync(path, after);
    } finally {
      await lock.release();
    }
    if (!given.has('q')) printLines('Image resized.');
    return 0;
  },
};
