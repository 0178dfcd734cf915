import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import process from 'node:process';
import type { ExecutionContext } from 'ava';

/** A program's path, or undefined where this machine does not have it. */
export function findProgram(name: string): string | undefined {
  for (const directory of `${process.env.PATH ?? ''}${delimiter}/usr/sbin${delimiter}/sbin`.split(delimiter)) {
    const path = join(directory, name);
    if (existsSync(path)) return path;
  }
  return undefined;
}

/** False, and a loud line, where a peer program is missing. */
export function hasPrograms(t: ExecutionContext, ...names: string[]): boolean {
  const missing = names.filter((name) => findProgram(name) === undefined);
  if (missing.length === 0) return true;
  t.log(`SKIPPED: ${missing.join(', ')} not installed`);
  t.pass();
  return false;
}

export interface RunResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end; a minute is long enough for each of them. */
export function run(name: string, args: readonly string[]): Promise<RunResult> {
  return new Promise((resolve) => {
    // The system's programs first: nbdsh needs the python3 that has libnbd's module.
    const env = { ...process.env, PATH: `/usr/bin:/bin:${process.env.PATH ?? ''}`, LC_ALL: 'C' };
    const options = { timeout: 60_000, maxBuffer: 64 << 20, env };
    execFile(findProgram(name) ?? name, args, options, (error, stdout, stderr) => {
      const status = error === null ? 0 : typeof error.code === 'number' ? error.code : -1;
      resolve({ status, stdout, stderr });
    });
  });
}

/**
 * What QEMU says where the processor time that it has used did not rise while it tried how fast the host derives LUKS keys:
 * the kernel counts in ticks
 */
const NO_CPU_USAGE = 'Unable to get accurate CPU usage';
const TRIES = 5;

/** As run(), and fails the test with the program's own words unless it ends with 0. */
export async function mustRun(t: ExecutionContext, name: string, args: readonly string[]): Promise<string> {
  let result = await run(name, args);
  for (let tries = 1; tries < TRIES && result.stderr.includes(NO_CPU_USAGE); tries++) result = await run(name, args);
  const { status, stdout, stderr } = result;
  t.is(status, 0, `${name} ${args.join(' ')}\n${stdout}${stderr}`);
  return stdout;
}

/** A directory for one test file; removed at its end. */
export function scratch(): { path: (name: string) => string; remove: () => void } {
  const directory = mkdtempSync(join(tmpdir(), 'caisson-conformance-nbd-'));
  return {
    path: (name) => join(directory, name),
    remove: () => rmSync(directory, { recursive: true, force: true }),
  };
}

/** A server program that is ready when its UNIX socket takes connections. */
export class PeerServer {
  readonly #child: ChildProcess;
  readonly #exit: Promise<unknown>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#exit = once(child, 'exit');
  }

  static async start(t: ExecutionContext, name: string, args: readonly string[], socket: string): Promise<PeerServer> {
    const child = spawn(findProgram(name) ?? name, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    child.stderr!.on('data', (chunk: Buffer) => {
      said = (said + chunk.toString()).slice(-2000);
    });
    const server = new PeerServer(child);
    t.teardown(() => server.stop());
    for (let attempt = 0; attempt < 200; attempt++) {
      if (child.exitCode !== null) throw new Error(`${name} ended: ${said}`);
      if (isListening(socket)) return server;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    child.kill();
    throw new Error(`${name} is not ready after 10 s: ${said}`);
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#child.kill();
    await this.#exit;
  }
}

/** Waits until a UNIX socket takes connections. */
export async function listening(socket: string): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (isListening(socket)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${socket} does not listen after 10 s`);
}

/** A TCP port of 127.0.0.1 that nobody has at the moment, for servers that cannot do without one. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Without connecting: some servers serve one connection and end. Flag 0x10000 is a socket that listens. */
/** Connections that it has taken have its name, too. */
function isListening(path: string): boolean {
  const sockets = readFileSync('/proc/net/unix', 'latin1').split('\n');
  return sockets.some((line) => line.endsWith(` ${path}`) && line.split(/\s+/)[3] === '00010000');
}
