import { STATE } from '../../../protocols/nbd/mod.ts';
import { type DiskImage, isZero } from '../../../services/nbd/images/mod.ts';
import type { Subcommand } from './grammar.ts';
import { type MapRun, mapRuns } from './image_map.ts';
import { printLines } from './output.ts';
import { ImageProgress } from './progress.ts';
import {
  formatOf,
  type Layer,
  type OpenedSource,
  openSource,
  SHARED_OPTIONS,
  SOURCE_CACHE_OPTION,
  SOURCE_OPTIONS,
} from './source.ts';

const PIECE_BYTES = 2 << 20;
/** Exit statuses of qemu-img compare */
const SAME = 0;
const DIFFERENT = 1;

export const compareCommand: Subcommand = {
  name: 'compare',
  summary: 'whether two images have the same contents',
  operands: 'FILE1 FILE2',
  options: [
    ...SOURCE_OPTIONS.map((rule) =>
      rule.short === 'f'
        ? { ...rule, help: `format of FILE1; never guessed` }
        : rule.long === 'backing'
          ? { ...rule, help: 'image of format F under FILE1; again: what is under that one' }
          : rule,
    ),
    { short: 'F', value: 'FMT', help: 'format of FILE2 (default: that of FILE1)' },
    { short: 's', help: 'strict: other sizes and other holes are a difference, too' },
    { short: 'p', help: 'show how far it is' },
    SOURCE_CACHE_OPTION,
    ...SHARED_OPTIONS,
  ],
  text: `Compares what two disks read as. One that is longer is the same if the rest is zeroes.
Exit status: 0 the same, 1 different, 2 and more: it failed.`,
  examples: `  caisson img compare -f qcow2 -F raw disk.qcow2 disk.raw
  caisson img compare -s -f raw a.raw b.raw`,
  async run(given) {
    const [first, second] = given.expect('FILE1', 'FILE2') as [string, string];
    const firstFormat = formatOf(given, 'f', first);
    const secondFormat = given.has('F') || given.asQemu ? formatOf(given, 'F', second) : firstFormat;
    const opened: OpenedSource[] = [];
    try {
      opened.push(await openSource(given, first, firstFormat));
      opened.push(await openSource(given, second, secondFormat));
      const [{ image: a }, { image: b }] = opened as [OpenedSource, OpenedSource];
      const say = (text: string): void => {
        if (!given.has('q')) printLines(text);
      };
      const total = Math.max(a.sizeBytes, b.sizeBytes);
      const progress = given.has('p') && !given.has('q') ? new ImageProgress(total) : undefined;
      const strict = given.has('s');
      if (a.sizeBytes !== b.sizeBytes && strict) {
        say('Strict mode: Image size mismatch!');
        return DIFFERENT;
      }
      const statuses = strict ? opened.map(({ layers }) => new StatusCursor(layers)) : [];
      const found = await firstDifference(a, b, statuses, progress?.show);
      progress?.end();
      if (found !== undefined) {
        say(found);
        return DIFFERENT;
      }
      if (a.sizeBytes !== b.sizeBytes) say('Warning: Image size mismatch!');
      say('Images are identical.');
      return SAME;
    } finally {
      for (const { image } of opened) await image.close();
    }
  },
};

/** What `map` says of one place after the other, for -s. */
class StatusCursor {
  readonly #runs: AsyncGenerator<MapRun>;
  #run: MapRun | undefined;

  constructor(layers: readonly Layer[]) {
    this.#runs = mapRuns(layers, 0, layers[0]!.image.sizeBytes);
  }

  /** `offset`: not before the last one, and on the disk */
  async at(offset: number): Promise<{ readonly text: string; readonly restBytes: number }> {
    while (this.#run === undefined || this.#run.start + this.#run.length <= offset) {
      this.#run = (await this.#runs.next()).value as MapRun;
    }
    const { start, length, present, zero, data, offset: place } = this.#run;
    return { text: `${present} ${zero} ${data} ${place !== undefined}`, restBytes: start + length - offset };
  }
}

async function firstDifference(
  a: DiskImage,
  b: DiskImage,
  statuses: readonly StatusCursor[],
  show: ((doneBytes: number) => void) | undefined,
): Promise<string | undefined> {
  const buffers = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)] as const;
  const common = Math.min(a.sizeBytes, b.sizeBytes);
  for (let at = 0; at < common; ) {
    const [extentA] = await a.blockStatus(at, Math.min(PIECE_BYTES, common - at), 1);
    const [extentB] = await b.blockStatus(at, Math.min(PIECE_BYTES, common - at), 1);
    const [statusA, statusB] = [await statuses[0]?.at(at), await statuses[1]?.at(at)];
    const lengths = [extentA!.lengthBytes, extentB!.lengthBytes, statusA?.restBytes, statusB?.restBytes];
    const length = Math.min(...lengths.map((bytes) => bytes ?? PIECE_BYTES), common - at, PIECE_BYTES);
    const [zeroA, zeroB] = [extentA!, extentB!].map(({ flags }) => (flags & STATE.ZERO) !== 0);
    if (statusA?.text !== statusB?.text) return `Strict mode: Offset ${at} block status mismatch!`;
    if (!zeroA || !zeroB) {
      const [pieceA, pieceB] = [buffers[0].subarray(0, length), buffers[1].subarray(0, length)];
      await Promise.all([a.read(at, pieceA), b.read(at, pieceB)]);
      if (!pieceA.equals(pieceB)) return `Content mismatch at offset ${at + sectorOf(pieceA, pieceB)}!`;
    }
    at += length;
    show?.(at);
  }
  const longer = a.sizeBytes > b.sizeBytes ? a : b;
  for (let at = common; at < longer.sizeBytes; ) {
    const [extent] = await longer.blockStatus(at, Math.min(PIECE_BYTES, longer.sizeBytes - at), 1);
    const length = Math.min(extent!.lengthBytes, longer.sizeBytes - at, PIECE_BYTES);
    if ((extent!.flags & STATE.ZERO) === 0) {
      const piece = buffers[0].subarray(0, length);
      await longer.read(at, piece);
      if (!isZero(piece)) return `Content mismatch at offset ${at + sectorOf(piece, Buffer.alloc(length))}!`;
    }
    at += length;
    show?.(at);
  }
  return undefined;
}

/** The first sector that differs, as an offset. */
function sectorOf(a: Buffer, b: Buffer): number {
  for (let at = 0; at < a.length; at += 512) {
    if (!a.subarray(at, at + 512).equals(b.subarray(at, at + 512))) return at;
  }
  return 0;
}
