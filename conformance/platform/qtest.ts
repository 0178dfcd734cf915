import { spawn, spawnSync } from 'node:child_process';
import type { ExecutionContext } from 'ava';
import type { AccessSize, MmioDevice } from '../../emulator/devices/device.ts';

const QEMU = 'qemu-system-riscv64';

/** One access of a register; `offset` in the device's window. */
export type Access =
  | { readonly kind: 'read'; readonly offset: number; readonly size: AccessSize }
  | { readonly kind: 'write'; readonly offset: number; readonly size: AccessSize; readonly value: number };

export function qemuPresent(t: ExecutionContext): boolean {
  if (spawnSync(QEMU, ['--version']).status === 0) return true;
  t.log(`SKIPPED: ${QEMU} is not installed`);
  t.pass();
  return false;
}

const LETTER: Record<AccessSize, string> = { 1: 'b', 2: 'w', 4: 'l' };

/** Runs accesses against QEMU's device, no instruction executing; gives what the reads gave. */
export async function runOnQemu(
  base: number,
  accesses: readonly Access[],
  args: readonly string[] = [],
): Promise<number[]> {
  const lines = accesses.map((access) => {
    const address = `0x${(base + access.offset).toString(16)}`;
    return access.kind === 'read'
      ? `read${LETTER[access.size]} ${address}`
      : `write${LETTER[access.size]} ${address} 0x${access.value.toString(16)}`;
  });
  const answers = await qtest(lines, args);
  return answers.flatMap((line, index) => (accesses[index]!.kind === 'read' ? [Number(line.split(' ')[1])] : []));
}

/** QEMU does not end when its input does: it is ended when it has answered every line. */
function qtest(lines: readonly string[], args: readonly string[]): Promise<string[]> {
  const { promise, resolve, reject } = Promise.withResolvers<string[]>();
  const qemu = spawn(
    QEMU,
    [
      ...['-M', 'virt', '-S', '-m', '64M', '-smp', '2', '-bios', 'none', '-display', 'none'],
      ...['-serial', 'null', '-monitor', 'none', '-qtest', 'stdio', '-qtest-log', 'none', ...args],
    ],
    { timeout: 60_000, killSignal: 'SIGKILL' },
  );
  let output = '';
  let errors = '';
  qemu.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
    if (output.split('\n').length - 1 >= lines.length) qemu.kill();
  });
  qemu.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
  });
  qemu.on('error', reject);
  qemu.on('close', () => {
    const answers = output.split('\n').filter((line) => line.startsWith('OK'));
    if (answers.length === lines.length) resolve(answers);
    else reject(new Error(`QEMU answered ${answers.length} of ${lines.length} accesses: ${errors}`));
  });
  qemu.stdin.on('error', reject);
  qemu.stdin.end(`${lines.join('\n')}\n`);
  return promise;
}

export function runOnDevice(device: MmioDevice, accesses: readonly Access[]): number[] {
  const reads: number[] = [];
  for (const access of accesses) {
    if (access.kind === 'read') reads.push(device.read(access.offset, access.size));
    else device.write(access.offset, access.size, access.value);
  }
  return reads;
}

/** The first difference, with the accesses that led to it; undefined where there is none. */
export function firstDifference(
  accesses: readonly Access[],
  theirs: readonly number[],
  ours: readonly number[],
): string | undefined {
  let read = 0;
  for (const [index, access] of accesses.entries()) {
    if (access.kind !== 'read') continue;
    if (theirs[read] !== ours[read]) {
      const history = accesses.slice(Math.max(0, index - 12), index + 1).map((item) => JSON.stringify(item));
      return `access ${index}: QEMU 0x${theirs[read]?.toString(16)}, ours 0x${ours[read]?.toString(16)}, after\n${history.join('\n')}`;
    }
    read++;
  }
  return undefined;
}

/** Small, repeatable (xorshift32) */
export function randomSource(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}
