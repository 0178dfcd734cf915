import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const COMPILER = 'riscv64-unknown-elf-gcc';
const SOURCES = join(import.meta.dirname, 'guest');
/** Contraction off: one multiplication and one addition are two roundings, as the source says */
const FLAGS = [
  ...['-march=rv64gc', '-mabi=lp64d', '-mcmodel=medany', '-O2', '-std=c11', '-ffp-contract=off'],
  ...['-Wall', '-Wextra', '-Werror', '-ffreestanding', '-fno-ident', '-fno-asynchronous-unwind-tables'],
  ...['-nostdlib', '-static', '-Wl,--build-id=none,--no-warn-rwx-segments,-T,link.ld'],
];

/** First line of the compiler's own version; undefined where it is not installed. */
export function guestCompiler(): string | undefined {
  const run = spawnSync(COMPILER, ['--version'], { encoding: 'utf8', timeout: 20_000 });
  return run.status === 0 ? run.stdout.split('\n', 1)[0] : undefined;
}

/**
 * Compiles `guest/<name>.c` into an ELF file in `folder` and gives its path.
 * @throws Error with the compiler's own words
 */
export function compileGuest(name: string, folder: string): { readonly path: string; readonly bytes: Uint8Array } {
  const path = join(folder, `${name}.elf`);
  const files = ['start.S', 'main.c', `${name}.c`];
  const run = spawnSync(COMPILER, [...FLAGS, '-o', path, ...files], {
    cwd: SOURCES,
    encoding: 'utf8',
    timeout: 60_000,
  });
  if (run.error) throw run.error;
  if (run.status !== 0) throw new Error(`Cannot compile ${name}: ${run.stderr.trim()}`);
  return { path, bytes: new Uint8Array(readFileSync(path)) };
}
