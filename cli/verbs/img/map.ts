import process from 'node:process';
import type { Subcommand } from './grammar.ts';
import { type MapRun, mapRuns } from './image_map.ts';
import { printLines } from './output.ts';
import { formatOf, openSource, SHARED_OPTIONS, SOURCE_OPTIONS } from './source.ts';

export const mapCommand: Subcommand = {
  name: 'map',
  summary: 'which parts of a disk are where',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS,
    { long: 'output', value: 'human|json', help: 'json has the keys of qemu-img map (default human)' },
    { short: 's', long: 'start-offset', value: 'SIZE', help: 'from here on (default 0)' },
    { short: 'l', long: 'max-length', value: 'SIZE', help: 'so much (default: to the end)' },
    ...SHARED_OPTIONS,
  ],
  text: `Prints which parts of a disk hold data, in which file of the chain and where in it. Holes of raw files are the
file system's on Linux; elsewhere what reads as zeroes counts as one.`,
  examples: `  caisson img map -f qcow2 disk.qcow2
  caisson img map -f qcow2 --output=json --backing=raw:base.raw top.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    const output = given.oneOf('output', ['human', 'json'], 'human');
    const { image, layers } = await openSource(given, path, format);
    try {
      const from = given.size('start-offset') ?? 0;
      const to = Math.min(from + (given.size('max-length') ?? image.sizeBytes), image.sizeBytes);
      const runs = mapRuns(layers, from, to);
      if (output === 'json') await printJsonMap(runs, from);
      else await printHumanMap(runs);
    } finally {
      await image.close();
    }
    return 0;
  },
};

const NOTHING: MapRun = {
  start: 0,
  length: 0,
  depth: 0,
  present: false,
  zero: false,
  data: false,
  compressed: false,
  offset: undefined,
  file: undefined,
};

/** One run a line, as qemu-img: large maps need no memory on either side. */
async function printJsonMap(runs: AsyncGenerator<MapRun>, from: number): Promise<void> {
  let before = '[';
  const line = ({ start, length, depth, present, zero, data, compressed, offset }: MapRun): string => {
    const tail = offset === undefined || compressed ? '' : `, "offset": ${offset}`;
    return `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, "data": ${data}${tail}}`;
  };
  for await (const run of runs) {
    process.stdout.write(`${before}${line(run)}`);
    before = ',\n';
  }
  // As qemu-img: no bytes at all are one run of no bytes.
  if (before === '[') process.stdout.write(`[${line({ ...NOTHING, start: from })}`);
  process.stdout.write(']\n');
}

async function printHumanMap(runs: AsyncGenerator<MapRun>): Promise<void> {
  const hex = (value: number) => (value === 0 ? '0' : `0x${value.toString(16)}`).padEnd(16);
  printLines('Offset          Length          Mapped to       File');
  for await (const { start, length, zero, data, compressed, offset, file } of runs) {
    if (!data || zero) continue;
    if (compressed || offset === undefined) {
      throw new Error(
        'Cannot print the map: a part of the disk is compressed or encrypted, and has no place of its own; use --output=json',
      );
    }
    printLines(`${hex(start)}${hex(length)}${hex(offset)}${file ?? ''}`);
  }
}
