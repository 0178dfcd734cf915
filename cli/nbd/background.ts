import { spawn } from 'node:child_process';
import { writeSync } from 'node:fs';
import process from 'node:process';

/** In the child's environment: descriptor that takes one byte when clients can connect */
const READY_FD = 'CAISSON_NBD_READY_FD';

/**
 * `--fork`: the same command again in a session of its own, without a terminal. Gives 0 once clients can connect, and
 * the child goes on; its own status where it ended before.
 */
export async function goOnInBackground(args: readonly string[]): Promise<number> {
  const words = args.filter((word) => word !== '--fork');
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1]!, 'nbd', ...words], {
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
    env: { ...process.env, [READY_FD]: '3' },
  });
  child.stderr!.on('data', (chunk: Buffer) => process.stderr.write(chunk));
  const status = await new Promise<number>((resolve) => {
    child.stdio[3]!.once('data', () => resolve(0));
    child.once('error', () => resolve(1));
    child.once('close', (code) => resolve(code ?? 1));
  });
  child.stderr!.destroy();
  child.stdio[3]!.destroy();
  child.unref();
  return status;
}

/** Tells the waiting parent, if there is one, that clients can connect. */
export function tellParent(): void {
  const fd = process.env[READY_FD];
  if (fd === undefined) return;
  delete process.env[READY_FD];
  // From here on nobody reads what is said.
  process.stderr.on('error', () => {});
  writeSync(Number(fd), '.');
}

/** The sockets that systemd hands over (sd_listen_fds): descriptors from 3 up; none where they are not for us. */
export function activatedSockets(): readonly number[] {
  const { LISTEN_PID: pid, LISTEN_FDS: count } = process.env;
  // The launcher that runs us under the right Node has its own process.
  if (pid === undefined || ![process.pid, process.ppid].includes(Number(pid))) return [];
  const sockets = Number(count);
  if (!Number.isInteger(sockets) || sockets < 1 || sockets > 64) return [];
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete process.env[name];
  return Array.from({ length: sockets }, (_, index) => 3 + index);
}
