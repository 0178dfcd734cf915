import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, rmSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import type { ImgResult } from '../../test/fixtures/img_verb.ts';
import { CommandGenerator, type KnownImage, type Step } from './command_generator.ts';
import { HERE, type TwoSides } from './two_sides.ts';

/** What is not alike after one command line on both sides. */
export interface Difference {
  readonly what: string;
  readonly ours: string;
  readonly theirs: string;
}

/**
 * Runs `steps` random commands on both sides, and tells of the first after which these are not alike. `log` is called
 * with each line, and with `swap` where each goes on with what the other has written.
 */
export async function runRandomCommands(
  sides: TwoSides,
  seed: number,
  steps: number,
  log: (line: string) => void,
): Promise<Difference | undefined> {
  sides.clear();
  const commands = new CommandGenerator(seed);
  for (let index = 0; index < steps; index++) {
    if (commands.chance(6)) {
      sides.swap();
      log('swap');
    }
    const step = commands.next();
    const words = step.args.map((arg) => (arg === '' || arg.includes(' ') ? `'${arg}'` : arg));
    log([step.program, ...words].join(' '));
    const found = await runStep(sides, commands, step);
    if (found === 'enough') return undefined;
    if (found !== undefined) return found;
  }
  return undefined;
}

/** What QEMU cannot do, and we can: the two go ways of their own from here. It may also not come to an end. */
const UNABLE = /Failed to zero out new clusters/;

async function runStep(
  sides: TwoSides,
  commands: CommandGenerator,
  step: Step,
): Promise<Difference | 'enough' | undefined> {
  const { program, args } = step;
  const ours = program === 'img' ? await sides.img(args) : await sides.qemu(args, sides.ours, program);
  const theirs = await sides.qemu(args, sides.theirs, program === 'img' ? 'qemu-img' : program);
  if (theirs.status < 0 || UNABLE.test(theirs.said)) return 'enough';
  const found = program === 'img' ? difference('the command', args, ours, theirs) : undefined;
  if (found !== undefined) return found;
  const failed = theirs.status !== 0;
  for (const name of step.touches) {
    const unlike = await compareImage(sides, commands, step, name, failed);
    if (unlike !== undefined) return unlike;
  }
  return undefined;
}

/** One image on both sides, after a step that may have made or changed it. */
async function compareImage(
  sides: TwoSides,
  commands: CommandGenerator,
  step: Step,
  name: string,
  failed: boolean,
): Promise<Difference | undefined> {
  const folders = [sides.ours, sides.theirs];
  const there = folders.map((folder) => existsSync(`${folder}/${name}`));
  if (there[0] !== there[1]) {
    if (!failed) return { what: `whether ${name} is there`, ours: String(there[0]), theirs: String(there[1]) };
    // A command that fails leaves a piece of a new file with QEMU, and none here.
    for (const folder of folders) rmSync(`${folder}/${name}`, { force: true });
  }
  const image = there.includes(false) ? undefined : await look(sides, name, commands, step.args);
  commands.learn(name, image);
  if (image === undefined) return undefined;

  const { format } = image;
  const file = ['-f', format, `${HERE}/${name}`];
  const looks: string[][] = [['info', '--backing-chain', '--output=json', ...file]];
  if (!commands.isOpaque(image)) looks.push(['map', '--output=json', ...file]);
  if (format === 'qcow2') looks.push(['check', '--output=json', ...file]);
  // One file, two programs. It takes a while, so not every time.
  for (const folder of commands.chance(3) ? folders : []) {
    for (const args of looks) {
      const results = [await sides.img(args, folder), await sides.qemu(args, folder)] as const;
      const found = difference(`${args[0]} of one file, ${name}`, args, ...results);
      if (found !== undefined) return found;
    }
  }
  if (format === 'qcow2' && step.program === 'img') {
    const { status, out, said } = await sides.qemu(['check', ...file], sides.ours);
    if (status !== 0) return { what: `what QEMU finds in our ${name}`, ours: out + said, theirs: '' };
  }
  const compare = ['compare', '-f', format, '-F', format, ...folders.map((folder) => `${folder}/${name}`)];
  const results = [await sides.img(compare), await sides.qemu(compare)] as const;
  if (results.some(({ status }) => status !== 0)) {
    return { what: `what ${name} reads as`, ours: results[0].out + results[0].said, theirs: results[1].out };
  }
  if (mayDiffer(step, image, failed)) {
    level(sides, commands, image);
    return undefined;
  }
  for (const args of looks) {
    const found = difference(
      `${args[0]} of what both wrote, ${name}`,
      args,
      await sides.qemu(args, sides.ours),
      await sides.qemu(args),
    );
    if (found !== undefined) return found;
  }
  return undefined;
}

/**
 * Whether clusters may be where the other has none: how much of what reads as zeroes is copied is up to who copies, as
 * are the holes of raw files, and how much of an image under this one is hidden from what is new. Of several changes to
 * bitmaps, one of which fails, QEMU keeps those before it.
 */
function mayDiffer({ args }: Step, { format, under }: KnownImage, failed: boolean): boolean {
  const command = args[0]!;
  if (format === 'raw' || ['convert', 'dd', 'commit', 'rebase'].includes(command)) return true;
  return command === 'bitmap' ? failed : under !== undefined && ['resize', 'amend'].includes(command);
}

function level(sides: TwoSides, commands: CommandGenerator, { name, format }: KnownImage): void {
  const [from, to] = commands.chance(2) ? [sides.ours, sides.theirs] : [sides.theirs, sides.ours];
  if (format !== 'raw') copyFileSync(`${from}/${name}`, `${to}/${name}`);
  else {
    const holes = `${to}/${name}.holes`;
    execFileSync('cp', ['--sparse=always', `${from}/${name}`, holes]);
    for (const folder of [from, to]) execFileSync('cp', ['--sparse=always', holes, `${folder}/${name}`]);
    rmSync(holes);
  }
}

function difference(what: string, args: readonly string[], ours: ImgResult, theirs: ImgResult): Difference | undefined {
  const [outOurs, outTheirs] = [ours, theirs].map(({ out }) => comparable(args, out));
  if (ours.status === theirs.status && isDeepStrictEqual(outOurs, outTheirs)) return undefined;
  const [a, b] = [ours, theirs].map(({ status, out, said }) => `${status} ${out}${said}`);
  return { what, ours: a!, theirs: b! };
}

/** Keys that tell where a program puts things, and when */
const PLACES = new Set([
  'actual-size',
  'offset',
  'image-end-offset',
  'fragmented-clusters',
  'date-sec',
  'date-nsec',
  'cid',
  'parent-cid',
]);

/** An output without places and times. */
function comparable(args: readonly string[], out: string): unknown {
  if (args.includes('--output=json') && out !== '') {
    const value = JSON.parse(out, (key, item) => (PLACES.has(key) ? undefined : item)) as unknown;
    return args[0] === 'map' ? joined(value as Record<string, unknown>[]) : value;
  }
  if (args[0] === 'map') return '';
  return out
    .replace(/^disk size: .*$/gm, '')
    .replace(/^Image end offset: .*$/gm, '')
    .replace(/[\d.]+% fragmented/g, '')
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, '');
}

/** Runs of `map` that differ in places alone are one. */
function joined(runs: readonly Record<string, unknown>[]): unknown[] {
  const list: Record<string, unknown>[] = [];
  for (const run of runs) {
    const last = list.at(-1);
    // Whether what is written reads as zeroes, QEMU asks of the file system.
    const kind = { depth: run.depth, present: run.present, data: run.data, zero: run.data !== true && run.zero };
    const { start: _, length, ...before } = last ?? {};
    if (last !== undefined && isDeepStrictEqual(kind, before)) last.length = Number(length) + Number(run.length);
    else list.push({ start: run.start, length: run.length, ...kind });
  }
  return list;
}

async function look(
  sides: TwoSides,
  name: string,
  commands: CommandGenerator,
  args: readonly string[],
): Promise<KnownImage | undefined> {
  const before = commands.images.find((image) => image.name === name);
  // Not guessed: a fixed VHD looks like raw.
  const option = args[0] === 'create' ? '-f' : args.includes('-n') ? undefined : '-O';
  const at = option === undefined ? -1 : args.indexOf(option);
  const format = at < 0 ? before?.format : args[at + 1];
  if (format === undefined) return undefined;
  const { status, out } = await sides.qemu(['info', '--output=json', '-f', format, `${HERE}/${name}`]);
  if (status !== 0) return undefined;
  const info = JSON.parse(out) as Record<string, unknown>;
  const under = info['backing-filename'] as string | undefined;
  const old = /"compat": "0\.10"/.test(out);
  return {
    name,
    format,
    sizeBytes: Number(info['virtual-size']),
    ...(under === undefined ? {} : { under }),
    ...(old ? { old } : {}),
  };
}
