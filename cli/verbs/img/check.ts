import { accessSync } from 'node:fs';
import process from 'node:process';
import { checkQcow2, type ImageFormat, type Qcow2CheckResult } from '../../../services/nbd/images/mod.ts';
import type { Given, Subcommand } from './grammar.ts';
import { printable, printJson, printLines } from './output.ts';
import { formatOf, openSource, SHARED_OPTIONS, SOURCE_CACHE_OPTION, SOURCE_OPTIONS, withAdvice } from './source.ts';

/** Exit statuses of qemu-img check */
const FAILED = 1;
const CORRUPT = 2;
const LEAKS = 3;
const UNSUPPORTED = 63;
/** Asked for at once when a table is followed, in `bytes` of the disk */
const STATUS_BYTES = 2 ** 40;
const MAX_EXTENTS = 65_536;

type Output = 'human' | 'json';

export const checkCommand: Subcommand = {
  name: 'check',
  summary: 'whether the tables of an image are sound',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS,
    { short: 'r', long: 'repair', value: 'leaks|all', help: 'mend a qcow2: what is lost space only, or everything' },
    { long: 'output', value: 'human|json', help: 'json has the keys of qemu-img check (default human)' },
    SOURCE_CACHE_OPTION,
    ...SHARED_OPTIONS,
  ],
  text: `Follows every table of a qcow2, vhdx, vmdk or dynamic vpc image. A leak is space that nobody uses: harmless. With -r a
qcow2 is mended; keep a copy before -r all, which has to choose what to believe.
Exit status: 0 sound, 1 it failed, 2 wrong, 3 leaks only, 63 there is no check for this format.`,
  examples: `  caisson img check -f qcow2 disk.qcow2
  caisson img check -f qcow2 -r leaks disk.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    const output = given.oneOf('output', ['human', 'json'], 'human');
    const repair = given.has('repair') ? given.oneOf('repair', ['leaks', 'all'], 'all') : 'none';
    // A vhdx, as with qemu-img, is looked at, and nothing of it needs to be mended.
    if (format === 'raw' || format === 'luks' || (repair !== 'none' && (format === 'vpc' || format === 'vmdk'))) {
      accessSync(path);
      const why = `${format} images have nothing to ${repair === 'none' ? 'check' : 'mend'}`;
      process.stderr.write(
        given.asQemu ? 'qemu-img: This image format does not support checks\n' : `caisson img: Cannot check: ${why}\n`,
      );
      return UNSUPPORTED;
    }
    if (format === 'qcow2') {
      const result = await withAdvice(path, () => checkQcow2(path, repair));
      return report(given, output, path, result);
    }
    return followTables(given, output, path, format);
  },
};

function report(given: Given, output: Output, path: string, result: Qcow2CheckResult): number {
  const { leaks, corruptions, leaksFixed, corruptionsFixed, checkErrors } = result;
  const problems = result.problems.map(printable);
  // qemu-img tells of each on standard error, beside JSON, too.
  if (given.asQemu) process.stderr.write(problems.map((line) => `${line}\n`).join(''));
  else if (output === 'human' && !given.has('q')) printLines(...problems);
  if (output === 'json') {
    // As qemu-img: a count of nothing is left out.
    const counts = {
      'image-end-offset': result.imageEndOffset,
      'total-clusters': result.totalClusters,
      'allocated-clusters': result.allocatedClusters,
      'fragmented-clusters': result.fragmentedClusters,
      'compressed-clusters': result.compressedClusters,
      corruptions,
      leaks,
      'corruptions-fixed': corruptionsFixed,
      'leaks-fixed': leaksFixed,
    };
    const found = Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== 0));
    printJson({ ...found, 'check-errors': checkErrors, filename: path, format: 'qcow2' });
  } else if (!given.has('q')) printLines(...humanReport(result));
  if (checkErrors > 0) return FAILED;
  if (corruptions > 0) return CORRUPT;
  return leaks > 0 ? LEAKS : 0;
}

function humanReport(result: Qcow2CheckResult): string[] {
  const { leaks, corruptions, leaksFixed, corruptionsFixed, checkErrors, totalClusters, allocatedClusters } = result;
  const lines: string[] = [];
  if (leaksFixed > 0 || corruptionsFixed > 0) {
    lines.push(
      'The following inconsistencies were found and repaired:',
      '',
      `    ${leaksFixed} leaked clusters`,
      `    ${corruptionsFixed} corruptions`,
      '',
      'Double checking the fixed image now...',
    );
  }
  if (leaks === 0 && corruptions === 0 && checkErrors === 0) lines.push('No errors were found on the image.');
  if (corruptions > 0) {
    lines.push('', `${corruptions} errors were found on the image.`);
    lines.push('Data may be corrupted, or further writes to the image may corrupt it.');
  }
  if (leaks > 0) {
    lines.push('', `${leaks} leaked clusters were found on the image.`);
    lines.push('This means waste of disk space, but no harm to data.');
  }
  if (checkErrors > 0) lines.push('', `${checkErrors} internal errors have occurred during the check.`);
  if (totalClusters > 0 && allocatedClusters > 0) {
    const percent = (part: number, whole: number) => `${((part * 100) / whole).toFixed(2)}%`;
    const allocated = percent(allocatedClusters, totalClusters);
    const fragmented = percent(result.fragmentedClusters, allocatedClusters);
    const compressed = percent(result.compressedClusters, allocatedClusters);
    const shape = `${fragmented} fragmented, ${compressed} compressed clusters`;
    lines.push(`${allocatedClusters}/${totalClusters} = ${allocated} allocated, ${shape}`);
  }
  if (result.imageEndOffset > 0) lines.push(`Image end offset: ${result.imageEndOffset}`);
  return lines;
}

/** Formats whose maps check each entry when it is used: so all are used once. */
async function followTables(given: Given, output: Output, path: string, format: ImageFormat): Promise<number> {
  const { image } = await openSource(given, path, format);
  let wrong: string | undefined;
  try {
    for (let at = 0; at < image.sizeBytes; ) {
      const length = Math.min(STATUS_BYTES, image.sizeBytes - at);
      for (const extent of await image.blockStatus(at, length, MAX_EXTENTS)) at += extent.lengthBytes;
    }
  } catch (error) {
    wrong = error instanceof Error ? error.message : String(error);
  } finally {
    await image.close();
  }
  if (output === 'json') {
    printJson({ ...(wrong === undefined ? {} : { corruptions: 1 }), 'check-errors': 0, filename: path, format });
  } else if (!given.has('q')) {
    if (wrong === undefined) printLines('No errors were found on the image.');
    else printLines(printable(wrong), '', 'An error was found on the image; what is behind it was not looked at.');
  }
  return wrong === undefined ? 0 : CORRUPT;
}
