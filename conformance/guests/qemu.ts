import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** The other emulator of the same machine; undefined where it is not installed. */
export function qemuVersion(): string | undefined {
  const run = spawnSync('qemu-system-riscv64', ['--version'], { encoding: 'utf8' });
  return run.status === 0 ? run.stdout.split('\n', 1)[0] : undefined;
}

export interface QemuExit {
  readonly status: number | null;
  readonly output: string;
}

/** QEMU's `-M virt` with its serial line in our hands and QMP beside it. */
export class Qemu implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'caisson-qemu-'));
  readonly #child: ChildProcess;
  readonly exit: Promise<QemuExit>;
  #output = '';
  #waiting: (() => void)[] = [];

  /** `args` gets this machine's own folder, for images; it is removed at the end */
  constructor(args: (folder: string) => readonly string[]) {
    const machine = ['-M', 'virt', '-display', 'none', '-serial', 'stdio', '-monitor', 'none'];
    const qmp = ['-qmp', `unix:${join(this.folder, 'qmp')},server=on,wait=off`];
    this.#child = spawn('qemu-system-riscv64', [...machine, ...qmp, ...args(this.folder)], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const take = (chunk: Buffer) => {
      this.#output += chunk.toString('latin1');
      for (const wake of this.#waiting.splice(0)) wake();
    };
    this.#child.stdout!.on('data', take);
    this.#child.stderr!.on('data', take);
    this.exit = new Promise((resolve, reject) => {
      this.#child.once('error', reject);
      this.#child.once('close', (status) => {
        for (const wake of this.#waiting.splice(0)) wake();
        resolve({ status, output: this.#output });
      });
    });
  }

  get output(): string {
    return this.#output;
  }

  type(text: string): void {
    this.#child.stdin!.write(text);
  }

  /** The first match in what the guest has said after `from`. @throws Error after `timeoutMs`, with the last lines */
  async expect(pattern: RegExp, timeoutMs = 20_000, from = 0): Promise<RegExpExecArray> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const match = pattern.exec(this.#output.slice(from));
      if (match !== null) return match;
      const left = deadline - Date.now();
      if (left <= 0 || this.#child.exitCode !== null)
        throw new Error(`The guest did not say ${pattern}; it said: …${this.#output.slice(-1500)}`);
      let timer: NodeJS.Timeout | undefined;
      await Promise.race([
        new Promise<void>((resolve) => this.#waiting.push(resolve)),
        new Promise<void>((resolve) => {
          timer = setTimeout(resolve, left);
        }),
      ]);
      clearTimeout(timer);
    }
  }

  /** Types one line and waits for the answer that `pattern` describes. */
  async ask(line: string, pattern: RegExp, timeoutMs?: number): Promise<RegExpExecArray> {
    const from = this.#output.length;
    this.type(`${line}\r`);
    return await this.expect(pattern, timeoutMs, from);
  }

  /** Runs QMP commands on a connection of their own. */
  async qmp(commands: readonly { execute: string; arguments?: unknown }[]): Promise<unknown[]> {
    const socket = connect(join(this.folder, 'qmp'));
    const results: unknown[] = [];
    try {
      const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
      await lines.next(); // greeting
      for (const command of [{ execute: 'qmp_capabilities' }, ...commands]) {
        socket.write(`${JSON.stringify(command)}\n`);
        for (;;) {
          const line = await lines.next();
          if (line.done === true) throw new Error(`QEMU closed QMP during ${command.execute}`);
          const answer = JSON.parse(line.value) as { return?: unknown; error?: { desc: string } };
          if (answer.error !== undefined) throw new Error(`${command.execute}: ${answer.error.desc}`);
          if (!('return' in answer)) continue; // an event
          results.push(answer.return);
          break;
        }
      }
    } finally {
      socket.destroy();
    }
    return results.slice(1);
  }

  async pressKeys(qcodes: readonly string[]): Promise<void> {
    for (const qcode of qcodes) {
      await this.qmp([{ execute: 'send-key', arguments: { keys: [{ type: 'qcode', data: qcode }], 'hold-time': 20 } }]);
      await new Promise((resolve) => setTimeout(resolve, 80));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.exit.catch(() => undefined);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** R, G, B of one pixel */
  at(x: number, y: number): readonly [number, number, number];
}

/** A `screendump` of QEMU: binary PPM. */
export function decodePpm(bytes: Buffer): Picture {
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.toString('latin1', 0, 64));
  if (head === null) throw new Error('Not a binary PPM picture');
  const width = Number(head[1]);
  const height = Number(head[2]);
  const pixels = bytes.subarray(head[0].length);
  if (pixels.length < width * height * 3) throw new Error('The picture is cut short');
  return {
    width,
    height,
    at: (x, y) => {
      const offset = (y * width + x) * 3;
      return [pixels[offset]!, pixels[offset + 1]!, pixels[offset + 2]!];
    },
  };
}
