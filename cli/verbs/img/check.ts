import process from 'node:process';
import type { Subcommand } from './grammar.ts';
import { printJson, printLines } from './output.ts';
import { formatOf, openSource, SHARED_OPTIONS, SOURCE_OPTIONS } from './source.ts';

/** Exit statuses of qemu-img check */
const CORRUPT = 2;
const UNSUPPORTED = 63;
const STATUS_BYTES = 1 << 40;
const MAX_EXTENTS = 65_536;

export const checkCommand: Subcommand = {
  name: 'check',
  summary: 'whether the tables of an image are sound',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS,
    { long: 'output', value: 'human|json', help: 'json has the keys of qemu-img check (default human)' },
    ...SHARED_OPTIONS,
  ],
  text: `Follows every table of a vhdx, vmdk or dynamic vpc image. Images of format raw have nothing to check.
Exit status: 0 sound, 1 it failed, 2 wrong, 63 there is no check for this format.`,
  examples: '  caisson img check -f vhdx disk.vhdx',
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    const output = given.oneOf('output', ['human', 'json'], 'human');
    if (format === 'raw' || format === 'qcow2') {
      printError(
        format === 'raw'
          ? 'raw images have nothing to check'
          : 'qcow2 images are not checked here yet; qemu-img check does it',
      );
      return UNSUPPORTED;
    }
    const { image } = await openSource(given, path, format);
    let corruptions = 0;
    try {
      for (let at = 0; at < image.sizeBytes; ) {
        try {
          const length = Math.min(STATUS_BYTES, image.sizeBytes - at);
          for (const extent of await image.blockStatus(at, length, MAX_EXTENTS)) at += extent.lengthBytes;
        } catch (error) {
          corruptions++;
          if (!given.has('q') && output === 'human') printLines(error instanceof Error ? error.message : String(error));
          break;
        }
      }
    } finally {
      await image.close();
    }
    if (output === 'json') {
      printJson({ ...(corruptions === 0 ? {} : { corruptions }), 'check-errors': 0, filename: path, format });
    } else if (!given.has('q')) {
      printLines(corruptions === 0 ? 'No errors were found on the image.' : 'The tables are wrong from there on.');
    }
    return corruptions === 0 ? 0 : CORRUPT;
  },
};

function printError(text: string): void {
  process.stderr.write(`caisson img check: ${text}\n`);
}
