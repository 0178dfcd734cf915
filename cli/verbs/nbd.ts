import process from 'node:process';
import { NBD_PORT } from '../../protocols/nbd/mod.ts';
import type { NbdListenAddress } from '../../services/nbd/mod.ts';
import { type DiskWords, errorText, plainErrorText } from '../format.ts';
import { NbdArguments, nbdOptionsHelp } from '../nbd/arguments.ts';
import { activatedSockets, goOnInBackground } from '../nbd/background.ts';
import { UsageError } from '../usage_error.ts';

/** What scripts look for behind `qemu-nbd --version`: the version whose words these are */
const QEMU_VERSION = '8.2.0';

const help = `caisson nbd [OPTIONS] IMAGE
Serves a disk image over NBD, with the options of qemu-nbd.

${nbdOptionsHelp()}

Under systemd (LISTEN_FDS) it serves the socket that it is handed.

  caisson nbd -k /tmp/disk.sock -f raw disk.raw &
  nbdinfo 'nbd+unix:///?socket=/tmp/disk.sock'
`;

const DISK_WORDS: DiskWords = {
  under: 'name it by --backing=FORMAT:PATH, or let names in images open files below a folder by --backing-root=DIR',
  passphrase:
    'name it by --object=secret,id=ID,file=FILE and --image-opts driver=FORMAT,file.filename=IMAGE,…key-secret=ID',
  readOnly: 'add -r',
};

/** `caisson nbd`: gives the exit status, 0 done, 1 it failed, 2 the command line is wrong. */
export const nbdVerb = {
  name: 'nbd',
  summary: 'serve a disk image over NBD',
  help,
  async run(args: string[]): Promise<number> {
    // As qemu-nbd: every failure is 1 there, and its name is in front.
    const asQemu = args.includes('--qemu-nbd');
    let values: NbdArguments | undefined;
    try {
      values = new NbdArguments(args);
      if (values.has('help')) {
        process.stdout.write(help);
        return 0;
      }
      if (values.has('version')) {
        process.stdout.write(`qemu-nbd ${QEMU_VERSION} (as caisson nbd answers)\n`);
        return 0;
      }
      if (values.has('list')) return await (await import('../nbd/list.ts')).list(addressOf(values), values);
      if (values.has('fork')) return await goOnInBackground(args);
      // Loaded only where something is served: what a server does not use costs it memory for as long as it runs.
      const { serve } = await import('../nbd/serve.ts');
      const [socket, ...more] = activatedSockets();
      if (socket === undefined) return await serve(addressOf(values), values);
      if (more.length > 0) throw new UsageError(`Cannot serve ${more.length + 1} sockets of systemd: expected one`);
      for (const other of ['socket', 'port', 'bind']) {
        if (values.has(other)) throw new UsageError(`Cannot use --${other}: systemd has handed over a socket`);
      }
      return await serve({ type: 'fd', fd: socket }, values);
    } catch (error) {
      if (asQemu) {
        const { inQemusWords } = await import('../nbd/qemu_words.ts');
        process.stderr.write(`qemu-nbd: ${errorText(inQemusWords(error, values))}\n`);
      } else {
        process.stderr.write(`caisson nbd: ${plainErrorText(error, DISK_WORDS)}\n`);
      }
      return error instanceof UsageError && !asQemu ? 2 : 1;
    }
  },
};

function addressOf(values: NbdArguments): Exclude<NbdListenAddress, { type: 'fd' }> {
  const path = values.get('socket');
  if (path === undefined) {
    const host = values.get('bind') ?? '127.0.0.1';
    return { type: 'inet', host, port: values.integer('port', NBD_PORT, 0, 65_535) };
  }
  for (const other of ['port', 'bind']) {
    if (values.has(other)) throw new UsageError(`Cannot use --socket and --${other} together`);
  }
  if (path === '') throw new UsageError('Cannot use --socket: its path is empty');
  return { type: 'unix', path };
}
