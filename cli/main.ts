import { readFileSync } from 'node:fs';
import process from 'node:process';
import { type DiskWords, plainErrorText } from './format.ts';
import { didYouMean } from './suggest.ts';
import { notice } from './terminal.ts';
import { UsageError, type Verb } from './usage_error.ts';

/** Each verb is loaded only when it is used: `caisson list` needs no emulator. */
const VERBS: Readonly<Record<string, () => Promise<Verb>>> = {
  run: async () => (await import('./verbs/run.ts')).runVerb,
  debian: async () => (await import('./verbs/debian.ts')).debianVerb,
  demo: async () => (await import('./verbs/demo.ts')).demoVerb,
  nbd: async () => (await import('./verbs/nbd.ts')).nbdVerb,
  img: async () => (await import('./verbs/img.ts')).imgVerb,
  migrate: async () => (await import('./verbs/migrate.ts')).migrateVerb,
  console: async () => (await import('./verbs/console.ts')).consoleVerb,
  list: async () => (await import('./verbs/list.ts')).listVerb,
  stats: async () => (await import('./verbs/stats.ts')).statsVerb,
  stop: async () => (await import('./verbs/stop.ts')).stopVerb,
  qmp: async () => (await import('./verbs/qmp.ts')).qmpVerb,
};

/** Of -drive */
const DISK_WORDS: DiskWords = {
  under:
    'name it by backing.driver=FORMAT,backing.file.filename=FILE, or let names in images open files below a folder by backing-root=FOLDER',
  passphrase: 'name it by -object secret,id=ID,file=FILE and key-secret=ID, of a qcow2 image encrypt.key-secret=ID',
  readOnly: 'add readonly=on, or convert it: caisson img convert',
};

process.exitCode = await main(process.argv.slice(2));

async function main([word, ...args]: string[]): Promise<number> {
  if (word === undefined || ['--help', '-help', '-h', 'help'].includes(word)) return help(args[0], args[1]);
  if (word === '--version' || word === '-version' || word === '-V') {
    process.stdout.write(`caisson ${version()}\n`);
    return 0;
  }
  const load = Object.hasOwn(VERBS, word) ? VERBS[word] : undefined;
  if (load === undefined) return refuse(word);
  const verb = await load();
  // -help is QEMU's
  if (args.includes('--help') || args[0] === '-help' || args[0] === '-h' || (verb.helpPages && args[1] === '-h'))
    return show(verb, args[0]);
  try {
    return await verb.run(args);
  } catch (error) {
    notice(`caisson: ${plainErrorText(error, DISK_WORDS)}`);
    return isUsage(error) ? 2 : 1;
  }
}

function refuse(word: string): number {
  const options = word.startsWith('-') ? '; the options of a machine come after run' : '';
  notice(`caisson: Cannot ${word}: unknown verb${didYouMean(word, Object.keys(VERBS))}${options} (caisson --help)`);
  return 2;
}

async function help(word: string | undefined, page: string | undefined): Promise<number> {
  const load = word !== undefined && Object.hasOwn(VERBS, word) ? VERBS[word] : undefined;
  if (load !== undefined) return show(await load(), page);
  if (word !== undefined) return refuse(word);
  const verbs = await Promise.all(Object.values(VERBS).map((loadVerb) => loadVerb()));
  process.stdout.write(`caisson: a RISC-V machine with its screen on a page, its disks on NBD, and live migration

  caisson VERB [OPTIONS]

${verbs.map(({ name, summary }) => `  ${name.padEnd(9)} ${summary}`).join('\n')}

First steps:
  caisson demo                 our own small guest, at once
  caisson debian               Debian's kernel to a shell, with console page and disk
  caisson demo migrate         moves a running guest to another process
  caisson VERB --help          all about one verb

Exit status: the guest's own after run; else 0 done, 1 the machine or a peer failed, 2 the command line is wrong
`);
  return 0;
}

function show(verb: Verb, page: string | undefined): number {
  process.stdout.write(verb.helpPages?.find(({ name }) => name === page)?.help ?? verb.help);
  return 0;
}

/** Wrong words and wrong machine options are the user's, everything else failed. */
function isUsage(error: unknown): boolean {
  return error instanceof UsageError || (error instanceof Error && 'code' in error && error.code === 'ERR_VM_OPTIONS');
}

function version(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
