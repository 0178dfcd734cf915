import { NBD_PORT } from '../../protocols/nbd/mod.ts';
import { connectError, pathTooLong, strerror } from '../strerror.ts';
import { inQemusWords as imgWords } from '../verbs/img/qemu_words.ts';
import type { NbdArguments } from './arguments.ts';

interface SystemError extends Error {
  readonly code?: string;
  readonly syscall?: string;
  readonly path?: string;
  readonly address?: string;
  readonly port?: number;
}

/**
 * The text of an error as qemu-nbd has it, without its name in front: of images, files and sockets. Other texts stay
 * ours. `values` are undefined where the command line could not be read.
 */
export function inQemusWords(error: unknown, values: NbdArguments | undefined): string {
  if (!(error instanceof Error)) return String(error);
  const { code, syscall, path, address, message } = error as SystemError;
  const socket = values?.get('socket');
  if (code !== undefined && (syscall === 'listen' || syscall === 'bind' || message.startsWith('Cannot listen on '))) {
    if (socket !== undefined) return listenError(code, socket);
    return code === 'EADDRINUSE'
      ? `Failed to find an available port: ${strerror(code)}`
      : `Failed to bind socket: ${strerror(code)}`;
  }
  const pidFile = values?.get('pid-file');
  if (code !== undefined && pidFile !== undefined && (path === pidFile || path === undefined)) {
    if (syscall === 'open') return `Could not create '${pidFile}': ${strerror(code)}`;
    if (syscall === 'write') return 'Failed to write pid file';
  }
  const connecting = connectError(message, Number(values?.get('port') ?? NBD_PORT));
  if (connecting !== undefined) return connecting;
  const bitmap = /^Cannot serve bitmap (.*): the image has none of that name$/s.exec(message);
  if (bitmap !== null) return `Bitmap '${bitmap[1]}' is not found`;
  if (/^Cannot find snapshot /.test(message)) return "Failed to load snapshot: Can't find snapshot";
  const image = values?.operands[0];
  return image === undefined || address !== undefined ? message : openError(message, image);
}

function listenError(code: string, path: string): string {
  if (code === 'EINVAL') return pathTooLong(path);
  // QEMU removes what is there before it binds.
  if (code === 'ENOTDIR') return `Failed to unlink socket ${path}: ${strerror(code)}`;
  return `Failed to bind socket to ${path}: ${strerror(code)}`;
}

/** As qemu-img says it, with what qemu-nbd puts in front instead. */
function openError(message: string, image: string): string {
  const said = /^E[A-Z0-9]+: /.test(message) ? imgWords(message) : imgWords(`${image}: ${message}`);
  const opening = /^Could not open '.*?': (?=.)/s.exec(said);
  return opening === null ? message : `Failed to blk_new_open '${image}': ${said.slice(opening[0].length)}`;
}
