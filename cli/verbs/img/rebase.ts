import { dirname, isAbsolute, join } from 'node:path';
import {
  type DiskImage,
  IMAGE_FORMATS,
  inspectQcow2,
  MemoryImage,
  openImage,
  Qcow2Image,
  rebaseQcow2,
  resolveChain,
} from '../../../services/nbd/images/mod.ts';
import type { Given, Subcommand } from './grammar.ts';
import { ImageProgress } from './progress.ts';
import {
  CACHE_OPTION,
  formatOf,
  knownFormat,
  type Layer,
  SHARED_OPTIONS,
  SOURCE_CACHE_OPTION,
  SOURCE_OPTIONS,
  sameFile,
  sourceOf,
  withAdvice,
} from './source.ts';

export const rebaseCommand: Subcommand = {
  name: 'rebase',
  summary: 'put a qcow2 over another image',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    { short: 'b', value: 'FILE', help: "the new image under it: a path from FILE's folder; '' for none" },
    { short: 'F', value: 'FMT', help: 'format of that; has to be given with it' },
    { short: 'u', help: 'only change the name: both images under it are the same, or the old one was renamed' },
    { short: 'p', help: 'show how far it is' },
    CACHE_OPTION,
    SOURCE_CACHE_OPTION,
    ...SHARED_OPTIONS,
  ],
  text: `Puts FILE over another image, so that it reads as before: what differs is copied into it. The old image under it is
named by --backing or --backing-root, as everywhere; with -u neither is opened.`,
  examples: `  caisson img rebase -f qcow2 --backing-root=. -b newbase.qcow2 -F qcow2 top.qcow2
  caisson img rebase -f qcow2 --backing-root=. -b '' top.qcow2
  caisson img rebase -f qcow2 -u -b moved/base.qcow2 -F qcow2 top.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    if (format !== 'qcow2') throw given.usage(`images of format ${format} are on top of nothing; qcow2 may be`);
    const file = given.text('b');
    if (file === undefined) throw given.usage("-b is missing; -b '' is for no image under it");
    const under = given.text('F');
    if (file !== '' && under === undefined) {
      throw given.usage(`the format of ${file} is not given, and never guessed; add -F qcow2, or whatever it is`);
    }
    if (given.has('u')) await rename(path, file === '' ? null : { file, format: formatName(given, under!) });
    else await rebase(given, path, file === '' ? null : { file, format: knownFormat(given, under!) });
    return 0;
  },
};

type Name = { readonly file: string; readonly format: ReturnType<typeof knownFormat> } | null;

async function rebase(given: Given, path: string, name: Name): Promise<void> {
  const source = await sourceOf(given, path, 'qcow2');
  const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
  try {
    if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
    const below = name === null ? undefined : await openBelow(given, path, name);
    const progress = given.has('p') && !given.has('q') ? new ImageProgress(image.sizeBytes) : undefined;
    await rebaseQcow2(image, below, name, { onProgress: (done) => progress?.show(done) });
    progress?.end();
  } finally {
    await image.close();
  }
}

/** The new image, with what it names itself where that is allowed. */
async function openBelow(given: Given, path: string, { file, format }: NonNullable<Name>): Promise<DiskImage> {
  const at = isAbsolute(file) ? file : join(dirname(path), file);
  const root = given.text('backing-root') ?? (given.asQemu ? '/' : undefined);
  return withAdvice(at, async () => {
    const source =
      root === undefined ? { path: at, format } : await resolveChain(at, format, { root, guess: given.asQemu });
    const layers: Layer[] = [];
    const image = await openImage(source, {
      readOnly: true,
      holes: true,
      onLayer: (layer, from) => layers.unshift({ image: layer, source: from }),
    });
    if (!sameFile(layers, path)) return image;
    await image.close();
    throw given.usage(`${path} would be under itself`);
  });
}

/** What QEMU has beside the formats that are read here */
const OTHER_DRIVERS =
  'blkdebug blkverify bochs cloop dmg file ftp ftps gluster host_cdrom host_device http https iscsi nbd nfs null-aio null-co nvme parallels qcow qed quorum rbd ssh throttle vdi vvfat'.split(
    ' ',
  );

/** Only written down: as qemu-img, it may be one that another program knows, `host_device`. */
function formatName(given: Given, format: string): string {
  if (!given.asQemu || IMAGE_FORMATS.some((known) => known === format)) return knownFormat(given, format);
  if (OTHER_DRIVERS.includes(format)) return format;
  throw given.usage(`format ${format} is no name of one`);
}

/** Changes the name in the header, and opens no other image: an empty disk stands in for each. */
async function rename(path: string, name: { readonly file: string; readonly format: string } | null): Promise<void> {
  const { header } = await withAdvice(path, () => inspectQcow2(path));
  const standIn = () => new MemoryImage(0);
  const image = await withAdvice(path, () =>
    Qcow2Image.open(path, { readOnly: false, ...(header.backingFile === undefined ? {} : { backing: standIn() }) }),
  );
  try {
    await image.changeBacking(name === null ? undefined : standIn(), { name });
  } finally {
    await image.close();
  }
}
