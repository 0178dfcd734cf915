import { commitQcow2, openImage, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import type { Subcommand } from './grammar.ts';
import { printLines } from './output.ts';
import { ImageProgress } from './progress.ts';
import { formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

export const commitCommand: Subcommand = {
  name: 'commit',
  summary: 'write what a qcow2 has of its own into the image under it',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    { short: 'd', help: 'leave FILE as it is; without, it has nothing of its own afterwards' },
    { short: 'p', help: 'show how far it is' },
    ...SHARED_OPTIONS,
  ],
  text: 'Writes what FILE has of its own into the image directly under it, which then reads as FILE did. Neither may be in use.',
  examples: `  caisson img commit -f qcow2 --backing=qcow2:base.qcow2 top.qcow2
  caisson img commit -f qcow2 --backing-root=. -p top.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    if (format !== 'qcow2') throw given.usage(`images of format ${format} are on top of nothing; qcow2 may be`);
    const source = await sourceOf(given, path, format);
    if (source.backing === undefined) {
      throw given.usage('what is under it is not said; add --backing=FORMAT:PATH or --backing-root=DIR');
    }
    const under = source.backing;
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      const below = await withAdvice(under.path!, () => openImage(under, { readOnly: false }));
      try {
        const progress = given.has('p') && !given.has('q') ? new ImageProgress(image.sizeBytes) : undefined;
        await commitQcow2(image, below, { keep: given.has('d'), onProgress: (done) => progress?.show(done) });
        progress?.end();
      } finally {
        await below.close();
      }
    } finally {
      await image.close();
    }
    if (!given.has('q')) printLines('Image committed.');
    return 0;
  },
};
