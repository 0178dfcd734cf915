import { openImage } from '../../../services/nbd/images/mod.ts';
import type { Given, Subcommand } from './grammar.ts';
import { printLines } from './output.ts';
import { CACHE_OPTION, formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

/** Of all requests at once, in `bytes` */
const MAX_BUFFER_BYTES = 1 << 30;
const MAX_REQUESTS = 1_000_000_000;

export const benchCommand: Subcommand = {
  name: 'bench',
  summary: 'how fast an image answers requests',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS,
    { short: 'c', value: 'N', help: 'so many requests (default 75000)' },
    { short: 'd', value: 'N', help: 'so many at once (default 64)' },
    { short: 's', value: 'SIZE', help: 'size of one (default 4k)' },
    { short: 'S', value: 'SIZE', help: 'from one to the next (default: the size)' },
    { short: 'o', value: 'OFFSET', help: 'where the first one is (default 0)' },
    { short: 'w', help: 'write, and not read: what is in the image is lost' },
    { long: 'pattern', value: 'BYTE', help: 'with -w: what is written (default 0)' },
    { long: 'flush-interval', value: 'N', help: 'with -w: flush after so many writes (default 0: never)' },
    { long: 'no-drain', help: 'with --flush-interval: the others go on meanwhile' },
    { short: 'n', help: 'accepted: the system has one way to do it' },
    { short: 'i', value: 'AIO', help: 'accepted, as -n' },
    CACHE_OPTION,
    ...SHARED_OPTIONS,
  ],
  text: 'Sends requests of one size to an image, one behind the other and over again at its end, and prints how long it took.',
  examples: `  caisson img bench -f raw disk.raw
  caisson img bench -f qcow2 -w -c 10000 -d 16 -s 64k scratch.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const writes = given.has('w');
    const count = number(given, 'c', 75_000, 1, MAX_REQUESTS);
    const depth = number(given, 'd', 64, 1, 65_536);
    const size = given.size('s') ?? 4096;
    const step = given.size('S') ?? size;
    const start = given.size('o') ?? 0;
    const pattern = number(given, 'pattern', 0, 0, 255);
    const flushEach = number(given, 'flush-interval', 0, 0, MAX_REQUESTS);
    if (!writes && (given.has('flush-interval') || given.has('pattern'))) {
      throw given.usage('--flush-interval and --pattern are for -w');
    }
    if (given.has('no-drain') && flushEach === 0) throw given.usage('--no-drain is for --flush-interval');
    if (flushEach > 0 && flushEach < depth) throw given.usage(`--flush-interval ${flushEach} is less than -d ${depth}`);
    if (size === 0 || size * depth > MAX_BUFFER_BYTES) {
      throw given.usage(`-s ${size} and -d ${depth}: expected up to ${MAX_BUFFER_BYTES} bytes at once`);
    }
    const source = await sourceOf(given, path, formatOf(given, 'f', path));
    const image = await withAdvice(path, () => openImage(source, { readOnly: !writes }));
    try {
      if (start + size > image.sizeBytes) {
        throw given.usage(`a request of ${size} bytes at ${start} is behind the end of the image, ${image.sizeBytes}`);
      }
      if (!given.has('q')) {
        const kind = writes ? 'write' : 'read';
        printLines(
          `Sending ${count} ${kind} requests, ${size} bytes each, ${depth} in parallel (starting at offset ${start}, step size ${step})`,
        );
        if (flushEach > 0) {
          const drain = given.has('no-drain') ? 'without' : 'with';
          printLines(`Sending flush every ${flushEach} ${drain} draining requests`);
        }
      }
      const startMs = performance.now();
      let sent = 0;
      let at = start;
      let flushing: Promise<void> | undefined;
      const work = async (): Promise<void> => {
        const buffer = new Uint8Array(size).fill(pattern);
        while (sent < count) {
          if (flushing !== undefined && !given.has('no-drain')) await flushing;
          if (sent >= count) return;
          sent++;
          const offset = at;
          at = at + step + size > image.sizeBytes ? start : at + step;
          if (writes) {
            if (!image.writeNow(offset, buffer)) await image.write(offset, buffer);
            if (flushEach > 0 && sent % flushEach === 0) {
              flushing = image.flush();
              await flushing;
              flushing = undefined;
            }
          } else if (!image.readNow(offset, buffer)) await image.read(offset, buffer);
        }
      };
      await Promise.all(Array.from({ length: depth }, work));
      const seconds = (performance.now() - startMs) / 1000;
      if (!given.has('q')) printLines(`Run completed in ${seconds.toFixed(3)} seconds.`);
    } finally {
      await image.close();
    }
    return 0;
  },
};

function number(given: Given, option: string, otherwise: number, min: number, max: number): number {
  const text = given.text(option);
  if (text === undefined) return otherwise;
  const value = Number(text);
  if (/^(?:\d+|0x[0-9a-f]+)$/i.test(text) && value >= min && value <= max) return value;
  throw given.usage(`${option.length === 1 ? '-' : '--'}${option} ${text}: expected a number from ${min} to ${max}`);
}
