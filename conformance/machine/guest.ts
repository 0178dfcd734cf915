import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';
import { DebianError, type DebianGuest, makeExt4Disk, prepareDebian } from '../../guests/debian/mod.ts';
import { QmpClient } from '../../services/shared/mod.ts';

// Debian's kernel on our machine, each in a `caisson run` of its own, with its serial port in our hands.

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));
/** Two busy cores and eight harts on them: a boot takes seconds where nothing else runs */
const BOOT_TIMEOUT_MS = 240_000;
const ANSWER_TIMEOUT_MS = 60_000;
const END_TIMEOUT_MS = 30_000;
const KEPT_CHARACTERS = 4 << 20;

/** The guest's files; undefined, and a loud line, where this system cannot have them. */
export async function debianOrSkip(t: ExecutionContext): Promise<DebianGuest | undefined> {
  try {
    return await prepareDebian();
  } catch (error) {
    if (!(error instanceof DebianError)) throw error;
    t.log(`SKIPPED: ${error.message}`);
    t.pass();
    return undefined;
  }
}

/** What ends together: one test, or a {@link Scope}. */
export interface Owner {
  teardown(end: () => unknown): void;
}

/** For guests that several tests of a file share; ended by `test.after.always`. */
export class Scope implements Owner {
  readonly #ends: (() => unknown)[] = [];
  teardown(end: () => unknown): void {
    this.#ends.push(end);
  }
  async close(): Promise<void> {
    for (const end of this.#ends.splice(0).reverse()) await end();
  }
}

/** A directory that only this user can enter; it goes with its owner. */
export function scratchFolder(t: Owner): string {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-machine-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** An empty ext4 file system. */
export async function ext4Disk(folder: string, name = 'disk.img', sizeMib = 16): Promise<string> {
  const path = join(folder, name);
  await makeExt4Disk(path, sizeMib, 'conformance');
  return path;
}

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** One run of the command, to its end: `caisson list` … It shares the machines of `folder`. */
export function caisson(folder: string, args: readonly string[], timeoutMs = ANSWER_TIMEOUT_MS): Promise<Ended> {
  const command = new Command(folder, args);
  const timer = setTimeout(() => command.kill('SIGKILL'), timeoutMs);
  return command.exit.finally(() => clearTimeout(timer));
}

/** A process of the command that goes on. */
export class Command {
  readonly exit: Promise<Ended>;
  readonly #child: ChildProcess;
  readonly #wakers = new Set<() => void>();
  #stdout = '';
  #stderr = '';

  constructor(folder: string, args: readonly string[]) {
    this.#child = spawn(process.execPath, [MAIN, ...args], {
      stdio: 'pipe',
      env: { ...process.env, XDG_RUNTIME_DIR: folder },
    });
    this.#child.stdin!.on('error', () => {}); // it has ended, which `exit` tells
    this.#child.stdout!.on('data', (chunk: Buffer) => {
      this.#stdout = (this.#stdout + chunk.toString('latin1')).slice(-KEPT_CHARACTERS);
      this.#wake();
    });
    this.#child.stderr!.on('data', (chunk: Buffer) => {
      this.#stderr = (this.#stderr + chunk.toString('latin1')).slice(-KEPT_CHARACTERS);
      this.#wake();
    });
    this.exit = new Promise((resolve, reject) => {
      this.#child.once('error', reject);
      this.#child.once('close', (status) => {
        resolve({ status, stdout: this.#stdout, stderr: this.#stderr });
        this.#wake();
      });
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }
  get ended(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }
  get stdout(): string {
    return this.#stdout;
  }
  get stderr(): string {
    return this.#stderr;
  }
  write(text: string): void {
    this.#child.stdin!.write(text);
  }
  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** @throws Error when it has not come after `timeoutMs`, or cannot come any more */
  async until<T>(what: string, look: () => T | null | undefined, timeoutMs: number): Promise<T> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const found = look();
      if (found !== null && found !== undefined) return found;
      const leftMs = deadline - performance.now();
      if (leftMs <= 0 || this.ended) {
        const why = this.ended ? 'it has ended' : `after ${timeoutMs} ms`;
        throw new Error(
          `${what} did not come (${why})\n${this.#stderr.slice(-1500)}\n…${JSON.stringify(this.#stdout.slice(-1500))}`,
        );
      }
      await new Promise<void>((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          this.#wakers.delete(wake);
          resolve();
        };
        const timer = setTimeout(wake, Math.min(leftMs, 1000));
        this.#wakers.add(wake);
      });
    }
  }

  #wake(): void {
    for (const wake of [...this.#wakers]) wake();
  }
}

export interface GuestOptions {
  /** Where the machines of this test are registered, see {@link scratchFolder} */
  readonly folder: string;
  readonly name: string;
  readonly debian: DebianGuest;
  /** After `-m`, `-name` and the guest's files, which it can replace */
  readonly args: readonly string[];
  /** Default: a shell on the serial port and, where there is one, on the screen */
  readonly append?: string;
}

/** What a shell command of the guest printed, and its status. */
export interface ShellAnswer {
  readonly status: number;
  readonly output: string;
}

export class Guest {
  readonly name: string;
  readonly folder: string;
  readonly command: Command;
  #read = 0;
  #asked = 0;

  private constructor(options: GuestOptions) {
    const { debian, name, folder } = options;
    this.name = name;
    this.folder = folder;
    this.command = new Command(folder, [
      ...['run', '-name', name, '-m', '256M', '-kernel', debian.kernelPath, '-initrd', debian.initrdPath],
      ...['-append', options.append ?? 'console=tty0 console=ttyS0 loglevel=3'],
      ...options.args,
    ]);
  }

  /** It has begun; whether it boots is for {@link ready} or {@link Command.exit}. Ended with its owner. */
  static start(t: Owner, options: GuestOptions): Guest {
    const guest = new Guest(options);
    t.teardown(() => guest.end());
    return guest;
  }

  /** Waits for the shell. */
  async ready(): Promise<void> {
    await this.expect(/caisson: guest is ready/, BOOT_TIMEOUT_MS);
    await this.expect(/caisson:~# /);
    // The shell would break the lines that we type where its terminal ends.
    this.type('stty cols 400\r');
    await this.expect(/caisson:~# /);
  }

  /** Where a machine with `-incoming` waits */
  async listening(): Promise<string> {
    return this.said(/Waiting for a migration on (\S+)/);
  }

  /** Group 1 of a line that the command wrote for its user. */
  async said(pattern: RegExp): Promise<string> {
    return this.command.until(String(pattern), () => pattern.exec(this.command.stderr)?.[1], ANSWER_TIMEOUT_MS);
  }

  type(text: string): void {
    this.command.write(text);
  }

  /** Waits for what the guest says next; what comes before it is dropped. */
  async expect(pattern: RegExp, timeoutMs = ANSWER_TIMEOUT_MS): Promise<RegExpExecArray> {
    const match = await this.command.until(
      String(pattern),
      () => pattern.exec(this.command.stdout.slice(this.#read)),
      timeoutMs,
    );
    this.#read += match.index + match[0].length;
    return match;
  }

  /**
   * Runs a line in the guest's shell. The serial echo of the line is not taken for its output, nor
   * what the shell says of background jobs before it prompts again.
   */
  async shell(line: string, timeoutMs = ANSWER_TIMEOUT_MS): Promise<ShellAnswer> {
    const mark = `<${this.name}:${++this.#asked}:`;
    this.type(`${line}; echo "${mark}$?>"\r`);
    const [text, status] = await this.expect(
      new RegExp(`"\\r?\\n([\\s\\S]*?)${mark}(\\d+)>\\r?\\n[\\s\\S]*?caisson:~# `),
      timeoutMs,
    ).then((match) => [match[1]!, Number(match[2])] as const);
    return { status, output: text.replaceAll('\r', '') };
  }

  /** As {@link shell}, and the line must succeed. */
  async mustShell(line: string, timeoutMs?: number): Promise<string> {
    const { status, output } = await this.shell(line, timeoutMs);
    if (status !== 0) throw new Error(`${line}: status ${status}\n${output}`);
    return output;
  }

  get qmpPath(): string {
    return join(this.folder, 'caisson', this.name, 'qmp.sock');
  }
  /** Closed by the caller. */
  async qmp(): Promise<QmpClient> {
    return QmpClient.connect(this.qmpPath, { timeoutMs: 15_000 });
  }

  async status(): Promise<string> {
    await using client = await this.qmp();
    return (await client.execute('query-status')).status;
  }

  /** As a user ends it: SIGTERM; after a while by force. */
  async end(): Promise<Ended> {
    if (!this.command.ended) this.command.kill('SIGTERM');
    const timer = setTimeout(() => this.command.kill('SIGKILL'), END_TIMEOUT_MS);
    return this.command.exit.finally(() => clearTimeout(timer));
  }
}

/** Waits for something that nobody tells: looked at some times a second. */
export async function eventually(
  what: string,
  check: () => boolean | Promise<boolean>,
  timeoutMs = ANSWER_TIMEOUT_MS,
  intervalMs = 100,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`${what}: not after ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, intervalMs));
  }
}
