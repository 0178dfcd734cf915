import { STATE } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, LuksImage, MappedImage, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import { NbdImage } from '../../../services/nbd/mod.ts';
import type { Layer } from './source.ts';

/** One run of the disk, as `map` shows it. */
export interface MapRun {
  start: number;
  length: number;
  /** How many images are above the one that has it */
  depth: number;
  /** An image of the chain has it */
  present: boolean;
  zero: boolean;
  data: boolean;
  /** Compressed: `offset` says nothing */
  compressed: boolean;
  /** In the file of the image that has it, in `bytes` */
  offset: number | undefined;
  /** That file */
  file: string | undefined;
}

/** The runs of `from` to `to`, neighbours joined. */
export async function* mapRuns(layers: readonly Layer[], from: number, to: number): AsyncGenerator<MapRun> {
  let open: MapRun | undefined;
  for (let at = from; at < to; ) {
    const run = await runAt(layers, 0, at, to - at);
    if (open !== undefined && joins(open, run)) open.length += run.length;
    else {
      if (open !== undefined) yield open;
      open = run;
    }
    at += run.length;
  }
  if (open !== undefined) yield open;
}

function joins(a: MapRun, b: MapRun): boolean {
  return (
    a.depth === b.depth &&
    a.present === b.present &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.compressed === b.compressed &&
    a.file === b.file &&
    (a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset)
  );
}

async function runAt(layers: readonly Layer[], depth: number, at: number, lengthBytes: number): Promise<MapRun> {
  const layer = layers[depth];
  // Behind the end of a shorter image, the one above it reads as zeroes.
  if (layer === undefined || at >= layer.image.sizeBytes) {
    return holeRun(at, lengthBytes, Math.max(0, depth - 1), false);
  }
  const own = await ownRun(layer, at, Math.min(lengthBytes, layer.image.sizeBytes - at));
  const file = layer.source.path;
  if (own.kind !== 'hole') {
    const { kind, length, offset } = own;
    const data = own.allocated ?? (kind === 'data' || kind === 'compressed');
    const compressed = kind === 'compressed';
    // As qemu-img: what is neither data nor zeroes is nowhere.
    const present = data || kind === 'zero';
    const where = { offset: present ? offset : undefined, file: present ? file : undefined };
    return { start: at, length, depth, present, zero: kind === 'zero', data, compressed, ...where };
  }
  if (depth + 1 < layers.length) return runAt(layers, depth + 1, at, own.length);
  return holeRun(at, own.length, depth, own.present);
}

function holeRun(start: number, length: number, depth: number, present: boolean): MapRun {
  const offset = undefined;
  return { start, length, depth, present, zero: true, data: false, compressed: false, offset, file: undefined };
}

interface OwnRun {
  readonly kind: 'data' | 'compressed' | 'zero' | 'hole';
  readonly length: number;
  readonly offset?: number;
  /** Of an export: what its server says beside whether it reads as zeroes */
  readonly allocated?: boolean;
  /** Of a hole: the format calls it a part of the image all the same */
  readonly present: boolean;
}

/** What one image itself has from `at` on. */
async function ownRun({ image, source }: Layer, at: number, lengthBytes: number): Promise<OwnRun> {
  if (image instanceof Qcow2Image) {
    const run = (await image.places(at, lengthBytes))[0]!;
    const { runBytes: length, host } = run;
    if (run.kind === 'unallocated') return { kind: 'hole', length, present: false };
    if (run.kind === 'compressed') return { kind: 'compressed', length, present: true };
    if (run.kind === 'zero') return { kind: 'zero', length, present: true, ...(host === 0 ? {} : { offset: host }) };
    // Where an encrypted cluster is helps nobody: its bytes are not the disk's.
    if (image.header.encryption !== 0) return { kind: 'data', length, present: true };
    return { kind: 'data', length, offset: host, present: true };
  }
  if (image instanceof MappedImage) {
    const place = image.map.lookupNow(at, lengthBytes) ?? (await image.map.lookup(at, lengthBytes));
    const length = place.lengthBytes;
    // QEMU has no holes in images that know no image under them.
    if (place.kind === 'hole') return { kind: 'hole', length, present: source.format !== 'vmdk' };
    if (place.kind === 'packed') return { kind: 'compressed', length, present: true };
    if (place.kind === 'zero') return { kind: 'zero', length, present: true };
    return { kind: 'data', length, offset: place.host, present: true };
  }
  if (image instanceof LuksImage) return { kind: 'data', length: lengthBytes, present: true };
  return rawRun(image, at, lengthBytes);
}

async function rawRun(image: DiskImage, at: number, lengthBytes: number): Promise<OwnRun> {
  const extent = (await image.blockStatus(at, lengthBytes, 1))[0]!;
  const length = Math.min(extent.lengthBytes, lengthBytes);
  const kind = (extent.flags & STATE.ZERO) !== 0 ? 'zero' : 'data';
  const server = image instanceof NbdImage ? { allocated: (extent.flags & STATE.HOLE) === 0 } : {};
  return { kind, length, offset: at, present: true, ...server };
}
