import { execFile, spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeElf } from './elf.ts';
import type { SystemProgram } from './system_program.ts';

const QEMU = 'qemu-system-riscv64';
const TIMEOUT_MS = 60_000;
const CPU =
  'rv64,zba=true,zbb=true,zbs=true,zbc=false,v=false,h=false,svpbmt=false,svinval=true,sstc=true,pmu-num=29,priv_spec=v1.12.0';

/** QEMU's version line, or why it cannot be used */
export function probeQemuSystem(): { version: string } | { missing: string } {
  const { error, stdout } = spawnSync(QEMU, ['--version'], { encoding: 'utf8' });
  if (error) return { missing: `${QEMU}: ${error.message}` };
  return { version: stdout.split('\n')[0] ?? '' };
}

/** Runs the program in M-mode of a `virt` machine without firmware and gives its data section as it was at the end. */
export async function runOnQemuSystem(program: SystemProgram): Promise<Uint8Array> {
  const directory = await mkdtemp(join(tmpdir(), 'caisson-isa-'));
  try {
    const [kernel, output] = [join(directory, 'program'), join(directory, 'output')];
    const sections = [program.code, program.data, program.tables];
    const segments = sections.map(({ base, bytes }) => ({ address: base, bytes }));
    await writeFile(kernel, writeElf(program.code.base, segments));
    const machine = ['-M', 'virt', '-cpu', CPU, '-m', '64M', '-smp', '2', '-bios', 'none', '-kernel', kernel];
    const quiet = ['-display', 'none', '-monitor', 'none', '-nodefaults', '-serial', `file:${output}`];
    const deadline = Date.now() + TIMEOUT_MS;
    await new Promise<void>((resolve, reject) => {
      execFile(QEMU, [...machine, ...quiet], { timeout: TIMEOUT_MS }, (error, _stdout, stderr) => {
        if (error || Date.now() > deadline)
          reject(
            new Error(`Cannot run the program on QEMU: ${error?.message ?? 'it did not power off'} ${stderr}`, {
              cause: error,
            }),
          );
        else resolve();
      });
    });
    return await readFile(output);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
