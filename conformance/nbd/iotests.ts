// QEMU's own block tests (qemu-iotests) with our programs in the place of QEMU's. They are GPL and not part of this
// project: Debian's source package is fetched by apt at test time, and unpacked into a folder that goes afterwards.
import { spawn } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import type { ExecutionContext } from 'ava';
import { findProgram } from './peers.ts';

const MAIN = new URL('../../cli/main.ts', import.meta.url).pathname;

export interface IotestsResult {
  /** By name of the test */
  readonly results: ReadonlyMap<string, 'pass' | 'fail' | 'not run'>;
  /** What the harness printed, with the differences */
  readonly said: string;
}

/** The unpacked tests, and a folder for what they make. */
export class Iotests {
  readonly #folder: string;
  readonly #path: (name: string) => string;
  readonly #shims: Readonly<Record<string, string>>;
  #runs = 0;

  private constructor(folder: string, path: (name: string) => string) {
    this.#folder = folder;
    this.#path = path;
    this.#shims = {
      // qemu-nbd 8.2 says by one line more that it knows extended headers, and by a flag what goes with them; the tests
      // are older.
      'qemu-nbd': `case " $* " in *' --list '*) ${command('nbd', '--qemu-nbd')} "$@" | sed '/^  transaction size: 64-bit$/d; s/flags: 0x1\\(...\\) \\(.*\\) block-status-payload/flags: 0x\\1 \\2/'; exit;; esac\nexec ${command('nbd', '--qemu-nbd', `--backing-root=${path('')}`)} "$@"`,
      'qemu-img': `exec ${command('img', '--qemu-img')} "$@"`,
    };
    const cache = `export NODE_COMPILE_CACHE='${path('compile-cache')}'`;
    for (const [name, script] of Object.entries(this.#shims)) {
      writeFileSync(path(name), `#!/bin/sh\n${cache}\n${script}\n`);
      chmodSync(path(name), 0o755);
    }
  }

  /** `path` names files of a scratch folder. Undefined, and a line, where the source is not to be had. */
  static async fetch(t: ExecutionContext, path: (name: string) => string): Promise<Iotests | undefined> {
    const parts = path('parts');
    const lists = path('lists');
    mkdirSync(parts);
    mkdirSync(join(lists, 'partial'), { recursive: true });
    const folder = '/etc/apt/sources.list.d';
    try {
      for (const name of readdirSync(folder).filter((file) => file.endsWith('.sources'))) {
        const text = readFileSync(join(folder, name), 'utf8').replace(/^Types:.*$/gm, 'Types: deb-src');
        writeFileSync(join(parts, name), text);
      }
    } catch {
      t.log('SKIPPED: no apt sources here');
      return undefined;
    }
    const apt = [
      'Dir::Etc::sourcelist=/dev/null',
      `Dir::Etc::sourceparts=${parts}`,
      `Dir::State::lists=${lists}`,
      'APT::Sandbox::User=root',
    ].flatMap((option) => ['-o', option]);
    const script = `cd '${path('')}' && apt-get -q ${apt.join(' ')} update && apt-get -q ${apt.join(' ')} source --download-only qemu && mkdir source && tar xf qemu_*.orig.tar.* -C source --strip-components=1 --wildcards '*/tests/qemu-iotests' '*/scripts/qapi' '*/python'`;
    const { status, stderr } = await ran('sh', ['-c', script], {}, 300_000);
    if (status !== 0) {
      t.log(`SKIPPED: the source of qemu is not to be had: ${stderr.trim().split('\n').at(-1)}`);
      return undefined;
    }
    // The harness waits a second for its server; a slow host needs longer.
    const common = path('source/tests/qemu-iotests/common.rc');
    const waiting = 'for i in $(seq 200); do [ -f "$QEMU_TEST_DIR/qemu-nbd.pid" ] && break; sleep 0.1; done';
    writeFileSync(
      common,
      readFileSync(common, 'utf8').replace(/^( *)sleep 1 # .*qemu-nbd needs.*$/m, () => waiting),
    );
    return new Iotests(path('source'), path);
  }

  /** One run of the harness with tests of its list; `options` as `-raw -nbd`. Runs beside others in its own folders. */
  async run(
    options: readonly string[],
    names: readonly string[],
    ours: readonly ('qemu-nbd' | 'qemu-img')[],
    timeoutMs: number,
  ): Promise<IotestsResult> {
    const run = `run${this.#runs++}`;
    const [source, work, sockets] = ['source', 'work', 'sock'].map((name) => this.#path(`${run}-${name}`)) as [
      string,
      string,
      string,
    ];
    // What differs is written beside the tests.
    cpSync(this.#folder, source, { recursive: true, verbatimSymlinks: true });
    for (const folder of [work, sockets]) mkdirSync(folder);
    const tests = join(source, 'tests', 'qemu-iotests');
    // 005 asks by truncate(1) whether files may be large, and names the disk by its URI: here that is a path, too.
    mkdirSync(join(tests, `nbd+unix:///?socket=${sockets}`), { recursive: true });
    const program = (name: 'qemu-nbd' | 'qemu-img'): string => (ours.includes(name) ? this.#path(name) : find(name));
    const env = {
      QEMU_PROG: find('qemu-system-riscv64'),
      QEMU_IMG_PROG: program('qemu-img'),
      QEMU_IO_PROG: find('qemu-io'),
      QEMU_NBD_PROG: program('qemu-nbd'),
      QSD_PROG: find('qemu-storage-daemon'),
      TEST_DIR: work,
      SOCK_DIR: sockets,
      PYTHON: '/usr/bin/python3',
      PATH: `/usr/bin:/bin:${process.env.PATH ?? ''}`,
      TZ: 'UTC',
    };
    const { stdout, stderr } = await ran('./check', [...options, ...names], env, timeoutMs, tests);
    const lines = stdout.matchAll(/(?:^|[\r\n ])([\w-]+) +(pass|fail|not run) /g);
    const results = new Map([...lines].map((match) => [match[1]!, match[2] as 'pass' | 'fail' | 'not run']));
    return { results, said: `${stdout.slice(-8000)}${stderr.slice(-1000)}` };
  }
}

function command(...words: string[]): string {
  return [process.execPath, MAIN, ...words].map((word) => `'${word}'`).join(' ');
}

function find(name: string): string {
  return findProgram(name)!;
}

function ran(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  timeoutMs: number,
  cwd?: string,
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: timeoutMs,
      ...(cwd === undefined ? {} : { cwd }),
    });
    const said = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk: Buffer) => {
      said.stdout += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      said.stderr += chunk.toString();
    });
    child.once('error', (error) => resolve({ status: null, ...said, stderr: error.message }));
    child.once('close', (status) => resolve({ status, ...said }));
  });
}
