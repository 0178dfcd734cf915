import { spawnSync } from 'node:child_process';
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

export interface GuestProgram {
  /** `guest/<name>.c` */
  readonly name: string;
  /** In S-mode behind Sv39 page tables instead of M-mode */
  readonly sv39?: boolean;
  /** Share of the workload, in `%` */
  readonly percent?: number;
  /** Starts at once and ends by itself: no host at the serial port */
  readonly alone?: boolean;
}

/**
 * Compiles a program into an ELF file in `folder` and gives its path.
 * @throws Error with the compiler's own words
 */
export function compileGuest(program: GuestProgram, folder: string): string {
  const { name } = program;
  const path = join(folder, `${name}${program.sv39 === true ? '-sv39' : ''}.elf`);
  const defines = [
    `-DPERCENT=${program.percent ?? 100}`,
    ...(program.sv39 === true ? ['-DSV39'] : []),
    ...(program.alone === true ? ['-DALONE'] : []),
  ];
  const files = ['start.S', 'main.c', 'paging.c', 'pci.c', `${name}.c`];
  const run = spawnSync(
    COMPILER,
    [...FLAGS, '-Wl,--gc-sections', '-ffunction-sections', ...defines, '-o', path, ...files],
    {
      cwd: SOURCES,
      encoding: 'utf8',
      timeout: 60_000,
    },
  );
  if (run.error) throw run.error;
  if (run.status !== 0) throw new Error(`Cannot compile ${name}: ${run.stderr.trim()}`);
  return path;
}
