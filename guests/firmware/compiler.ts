import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const COMPILER = 'riscv64-unknown-elf-gcc';
const SOURCES = join(import.meta.dirname, 'source');

/** The loads and stores of the M-mode firmware need no floating point, so any RV64 with A and C runs it. */
const FLAGS = [
  ...['-march=rv64imac_zicsr_zifencei', '-mabi=lp64', '-mcmodel=medany', '-Os', '-std=c11'],
  ...['-Wall', '-Wextra', '-Werror', '-ffreestanding', '-fno-builtin', '-fno-common', '-fno-ident'],
  ...['-fno-asynchronous-unwind-tables', '-ffunction-sections', '-fdata-sections'],
  ...['-nostdlib', '-static', '-s', '-Wl,--gc-sections,--build-id=none,--no-warn-rwx-segments,-T,link.ld'],
];

/** First line of the compiler's own version; undefined where it is not installed. */
export function firmwareCompiler(): string | undefined {
  const run = spawnSync(COMPILER, ['--version'], { encoding: 'utf8' });
  return run.status === 0 ? run.stdout.split('\n', 1)[0] : undefined;
}

/**
 * Compiles `source/` to an ELF file. The same compiler gives the same bytes.
 * @throws Error with the compiler's own words
 */
export function compileFirmware(): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-firmware-'));
  try {
    const files = readdirSync(SOURCES)
      .filter((name) => name.endsWith('.S') || name.endsWith('.c'))
      .sort();
    const output = join(folder, 'firmware.elf');
    const run = spawnSync(COMPILER, [...FLAGS, '-o', output, ...files], { cwd: SOURCES, encoding: 'utf8' });
    if (run.error) throw run.error;
    if (run.status !== 0) throw new Error(`Cannot compile the firmware: ${run.stderr.trim()}`);
    return new Uint8Array(readFileSync(output));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
