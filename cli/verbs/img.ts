import process from 'node:process';
import { plainErrorText } from '../format.ts';
import { didYouMean } from '../suggest.ts';
import { UsageError, type Verb } from '../usage_error.ts';
import { amendCommand } from './img/amend.ts';
import { benchCommand } from './img/bench.ts';
import { bitmapCommand } from './img/bitmap.ts';
import { checkCommand } from './img/check.ts';
import { commitCommand } from './img/commit.ts';
import { compareCommand } from './img/compare.ts';
import { convertCommand } from './img/convert.ts';
import { createCommand } from './img/create.ts';
import { ddCommand } from './img/dd.ts';
import { type Given, helpOf, parseGiven, type Subcommand } from './img/grammar.ts';
import { resolveImageOpts } from './img/image_opts.ts';
import { infoCommand } from './img/info.ts';
import { mapCommand } from './img/map.ts';
import { measureCommand } from './img/measure.ts';
import { inQemusWords } from './img/qemu_words.ts';
import { rebaseCommand } from './img/rebase.ts';
import { resizeCommand } from './img/resize.ts';
import { snapshotCommand } from './img/snapshot.ts';

const COMMANDS: readonly Subcommand[] = [
  infoCommand,
  createCommand,
  convertCommand,
  checkCommand,
  mapCommand,
  compareCommand,
  resizeCommand,
  measureCommand,
  ddCommand,
  snapshotCommand,
  rebaseCommand,
  commitCommand,
  amendCommand,
  bitmapCommand,
  benchCommand,
];

const help = `caisson img COMMAND [OPTIONS] …
Makes, copies and inspects disk images, with the commands and options of qemu-img.

${COMMANDS.map(({ name, summary }) => `  ${name.padEnd(9)} ${summary}`).join('\n')}

  caisson img create -f qcow2 disk.qcow2 20G
  caisson img info -f qcow2 disk.qcow2
  caisson img convert -f vmdk -O qcow2 -p appliance.vmdk disk.qcow2
  caisson img COMMAND --help

What differs from qemu-img: the format of an image is never guessed, so -f has to be given; names inside images open no
files, unless --backing-root says where they may lead. Exit statuses are qemu-img's: a wrong command line is 1.
`;

/** `caisson img`: exit statuses are those of qemu-img, so that scripts can read them. */
export const imgVerb: Verb = {
  name: 'img',
  summary: 'make, copy and inspect disk images, as qemu-img',
  help,
  helpPages: COMMANDS.map((command) => ({ name: command.name, help: helpOf(command) })),
  async run(words) {
    stopWithoutReader();
    const asQemu = words[0] === '--qemu-img';
    const [word, ...args] = asQemu ? words.slice(1) : words;
    if (asQemu && (word === '--version' || word === '-V')) {
      // Scripts ask for what they may use.
      process.stdout.write('qemu-img version 7.2.0 (Caisson, as that)\n');
      return 0;
    }
    if (word === undefined) {
      process.stderr.write(`caisson img: Cannot run: no COMMAND is given\n\n${help}`);
      return 1;
    }
    let given: Given | undefined;
    try {
      const command = COMMANDS.find(({ name }) => name === word);
      if (command === undefined) throw unknown(word);
      given = parseGiven(command, args, asQemu);
      resolveImageOpts(word, given);
      return await command.run(given);
    } catch (error) {
      const doing = { command: word, format: given?.text('O') ?? 'raw' };
      process.stderr.write(
        asQemu ? `qemu-img: ${inQemusWords(error, doing)}\n` : `caisson img: ${plainErrorText(error)}\n`,
      );
      // 1 of compare means that the images differ.
      return word === 'compare' ? 2 : 1;
    }
  },
};

let stops = false;

/** `… | head`: whoever read has enough, which is no failure to tell of. */
function stopWithoutReader(): void {
  if (stops) return;
  stops = true;
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(141); // as by SIGPIPE, which ends qemu-img
  });
}

function unknown(word: string): UsageError {
  const names = COMMANDS.map(({ name }) => name);
  return new UsageError(`Cannot ${word}: unknown${didYouMean(word, names)} (caisson img --help)`);
}
