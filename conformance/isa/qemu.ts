import { execFile, spawnSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeElf } from './elf.ts';
import type { Program } from './program.ts';

const QEMU = 'qemu-riscv64';
const TIMEOUT_MS = 60_000;
/** Ours and no more, as far as QEMU 7.2 has switches: what we call illegal, it must call illegal */
const CPU = 'rv64,zba=true,zbb=true,zbs=true,zbc=false,v=false,h=false';

/** QEMU's version line, or why it cannot be used */
export function probeQemu(): { version: string } | { missing: string } {
  const { error, stdout } = spawnSync(QEMU, ['--version'], { encoding: 'utf8' });
  if (error) return { missing: `${QEMU}: ${error.message}` };
  return { version: stdout.split('\n')[0] ?? '' };
}

/** Runs the program in QEMU's user mode and gives its data section as it was at the end. */
export async function runOnQemu(program: Program): Promise<Uint8Array> {
  const directory = await mkdtemp(join(tmpdir(), 'caisson-isa-'));
  try {
    const path = join(directory, 'program');
    const segments = [program.code, program.data].map(({ base, bytes }) => ({ address: base, bytes }));
    await writeFile(path, writeElf(program.code.base, segments), { mode: 0o700 });
    return await new Promise((resolve, reject) => {
      const limits = { encoding: 'buffer', timeout: TIMEOUT_MS, maxBuffer: 64 << 20 } as const;
      execFile(QEMU, ['-cpu', CPU, path], limits, (error, stdout, stderr) => {
        if (error) reject(new Error(`Cannot run the program on QEMU: ${error.message} ${stderr}`, { cause: error }));
        else resolve(stdout);
      });
    });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
