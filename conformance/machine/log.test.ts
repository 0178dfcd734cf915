// The log of traps beside QEMU's, for a program that takes the same ones on both.
import { spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { encode } from '../../emulator/isa/mod.ts';
import { sampleElf } from '../../test/macros/programs.ts';
import { qemuPresent } from '../platform/qtest.ts';

const CAISSON = fileURLToPath(new URL('../../bin/caisson', import.meta.url));
const RAM = 0x8000_0000;
const [T0, T1, A0] = [5, 6, 10];
const MTVEC = 0x305;
const MEPC = 0x341;
/** Of the test device: the machine powers off (QEMU hw/misc/sifive_test.c) */
const FINISHER = 0x10_0000;
const FINISHER_PASS = 0x5555;

/** Traps in M-mode, each of which the handler steps over; then it powers off. */
function program(): Uint8Array {
  const handler = 14;
  const words = [
    encode('auipc', { rd: T0, imm: 0 }),
    encode('addi', { rd: T0, rs1: T0, imm: handler * 4 }),
    encode('csrrw', { rs1: T0, csr: MTVEC }),
    encode('ecall', {}),
    encode('addi', { rd: A0, imm: 5 }),
    0xffff_ffff, // no instruction
    encode('ld', { rd: A0, rs1: 0, imm: 8 }),
    encode('sd', { rs1: 0, rs2: 0, imm: 16 }),
    encode('csrrw', { rs1: 0, csr: 0xf11 }),
    encode('lui', { rd: T0, imm: FINISHER }),
    encode('lui', { rd: T1, imm: FINISHER_PASS & ~0xfff }),
    encode('addi', { rd: T1, rs1: T1, imm: FINISHER_PASS & 0xfff }),
    encode('sw', { rs1: T0, rs2: T1, imm: 0 }),
    encode('jal', { rd: 0, imm: 0 }),
    encode('csrrs', { rd: T1, csr: MEPC }),
    encode('addi', { rd: T1, rs1: T1, imm: 4 }),
    encode('csrrw', { rs1: T1, csr: MEPC }),
    encode('mret', {}),
  ];
  const bytes = new Uint8Array(new Uint32Array(words).buffer);
  return sampleElf([{ physical: RAM, bytes }], BigInt(RAM));
}

test('-d int writes the lines that QEMU writes for the same traps', async (t) => {
  if (!qemuPresent(t)) return;
  const folder = await mkdtemp(join(tmpdir(), 'caisson-log-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const kernel = join(folder, 'traps.elf');
  await writeFile(kernel, program());
  const logOf = async (command: string, args: readonly string[], file: string): Promise<string[]> => {
    const common = ['-M', 'virt', '-m', '64M', '-bios', 'none', '-kernel', kernel, '-nographic', '-d', 'int'];
    const { status } = spawnSync(command, [...args, ...common, '-D', join(folder, file)], {
      timeout: 60_000,
      stdio: 'ignore',
    });
    t.is(status, 0, command);
    return (await readFile(join(folder, file), 'latin1')).split('\n').filter((line) => line !== '');
  };
  const ours = await logOf(CAISSON, ['run', '-name', 'conformance-log'], 'ours');
  const theirs = await logOf('qemu-system-riscv64', [], 'theirs');
  t.deepEqual(ours, theirs);
  t.is(ours.length, 5);
});
