import { dirname, isAbsolute, join, resolve } from 'node:path';
import { commitQcow2, type ImageSource, openImage, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import type { Subcommand } from './grammar.ts';
import { printLines } from './output.ts';
import { ImageProgress } from './progress.ts';
import { CACHE_OPTION, formatOf, RATE_OPTION, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

export const commitCommand: Subcommand = {
  name: 'commit',
  summary: 'write what a qcow2 has of its own into the image under it',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    { short: 'd', help: 'leave FILE as it is; without, it has nothing of its own afterwards' },
    {
      short: 'b',
      value: 'FILE',
      help: "down to this image of the chain, a path from FILE's folder; FILE stays as it is",
    },
    CACHE_OPTION,
    RATE_OPTION,
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
      throw given.usage(
        given.asQemu
          ? 'the image has no backing file'
          : 'what is under it is not said; add --backing=FORMAT:PATH or --backing-root=DIR',
      );
    }
    const target = given.text('b');
    const upper = target === undefined ? [source] : layersAbove(source, path, target);
    const under = upper.at(-1)!.backing!;
    // As qemu-img: -b leaves all images above as they are.
    const keep = given.has('d') || target !== undefined;
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      const below = await withAdvice(under.path!, () => openImage(under, { readOnly: false }));
      try {
        const progress = given.has('p') && !given.has('q') ? new ImageProgress(image.sizeBytes) : undefined;
        await commitQcow2(image, below, {
          keep,
          depth: upper.length,
          onProgress: (done) => progress?.show(done),
        });
        progress?.end();
      } finally {
        await below.close();
      }
      if (!keep) await image.releaseSpace();
    } finally {
      await image.close();
    }
    if (!given.has('q')) printLines('Image committed.');
    return 0;
  },
};

/** The images above `target`, the top first. @throws Error where the chain has no such image */
function layersAbove(top: ImageSource, path: string, target: string): ImageSource[] {
  const wanted = resolve(isAbsolute(target) ? target : join(dirname(path), target));
  const layers: ImageSource[] = [];
  for (let layer: ImageSource | undefined = top; layer !== undefined; layer = layer.backing) {
    if (layers.length > 0 && wanted === resolve(layer.path!)) return layers;
    layers.push(layer);
  }
  throw new Error(
    `Cannot find ${target} in the chain of ${path}: it has ${layers.map((layer) => layer.path).join(', ')}`,
  );
}
