// QEMU's side: the whole RAM is a file, which is read when the guest has powered off.
import { spawn, spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeElf } from '../isa/elf.ts';
import type { Image } from './image.ts';
import { RAM_BASE, RAM_BYTES } from './layout.ts';

const QEMU = 'qemu-system-riscv64';
const CPU =
  'rv64,zba=true,zbb=true,zbs=true,zbc=false,v=false,h=false,svpbmt=false,svinval=false,sstc=true,pmu-num=29,priv_spec=v1.12.0';
const TIMEOUT_MS = 120_000;

/** QEMU's version line, or why it cannot be used */
export function probeQemuSystem(): { version: string } | { missing: string } {
  const { error, stdout } = spawnSync(QEMU, ['--version'], { encoding: 'utf8' });
  if (error) return { missing: `${QEMU}: ${error.message}` };
  return { version: stdout.split('\n')[0] ?? '' };
}

export interface QemuResult {
  readonly ram: Uint8Array;
  /** False where it had to be stopped: RAM is what it was then */
  readonly ended: boolean;
}

/** Two harts, so that atomics are atomic; the second sleeps. */
export async function runOnQemu(image: Image, timeoutMs = TIMEOUT_MS): Promise<QemuResult> {
  const directory = await mkdtemp(join(tmpdir(), 'caisson-differential-'));
  try {
    const [kernel, ram] = [join(directory, 'program'), join(directory, 'ram')];
    await writeFile(
      kernel,
      writeElf(
        RAM_BASE,
        image.sections.map(({ base, bytes }) => ({ address: base, bytes })),
      ),
    );
    const memory = `memory-backend-file,id=ram,size=${RAM_BYTES},mem-path=${ram},share=on`;
    const machine = ['-M', 'virt,memory-backend=ram', '-object', memory, '-m', `${RAM_BYTES >> 20}M`, '-smp', '2'];
    const quiet = ['-display', 'none', '-monitor', 'none', '-serial', 'none', '-nodefaults'];
    const child = spawn(QEMU, [...machine, '-cpu', CPU, '-bios', 'none', '-kernel', kernel, ...quiet], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let errors = '';
    child.stderr.on('data', (bytes) => {
      errors += String(bytes);
    });
    let ended = true;
    const timer = setTimeout(() => {
      ended = false;
      child.kill('SIGKILL');
    }, timeoutMs);
    await new Promise<void>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code) => {
        clearTimeout(timer);
        if (ended && code !== 0)
          reject(new Error(`Cannot run the image on QEMU: exit ${code}: ${errors.slice(0, 500)}`));
        else resolve();
      });
    });
    return { ram: await readFile(ram), ended };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
