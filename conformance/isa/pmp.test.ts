// Physical memory protection against qemu-system-riscv64: random entries around one spot, and accesses of each size there.
import test from 'ava';
import { BareHart } from './bare_hart.ts';
import { CODE_BASE } from './program.ts';
import { probeQemuSystem, runOnQemuSystem } from './qemu_system.ts';
import { Random } from './random.ts';
import { systemDifferences } from './system_differences.ts';
import { CSR, SystemProgramBuilder } from './system_program.ts';

const SEED = Number(process.env.CAISSON_ISA_SEED ?? 1);
const CASES = Number(process.env.CAISSON_ISA_CASES ?? 1000);
const ENTRIES = 12;
const CODE_BYTES = 32 << 20;
const NAPOT = 3;
const READ_EXECUTE = 5;

const ACCESSES = [
  { name: 'lb', word: 0x0005_8503, bytes: 1 },
  { name: 'lh', word: 0x0005_9503, bytes: 2 },
  { name: 'lw', word: 0x0005_a503, bytes: 4 },
  { name: 'ld', word: 0x0005_b503, bytes: 8 },
  { name: 'sb', word: 0x00b5_8023, bytes: 1 },
  { name: 'sh', word: 0x00b5_9023, bytes: 2 },
  { name: 'sw', word: 0x00b5_a023, bytes: 4 },
  { name: 'sd', word: 0x00b5_b023, bytes: 8 },
  { name: 'fetch', word: 0x0005_8067, bytes: 4 },
] as const;

interface Entry {
  readonly config: number;
  readonly address: bigint;
}

/** Of `sizeBytes`, a power of two from 8 */
const napot = (base: bigint, sizeBytes: number) => (base >> 2n) | BigInt(sizeBytes / 8 - 1);

function randomEntry(random: Random, spot: bigint): Entry {
  const mode = random.below(4);
  // W without R is reserved
  const rights = random.pick([0, 1, 3, 4, 5, 7]);
  const near = (spot >> 2n) + BigInt(random.below(33) - 16);
  if (mode !== NAPOT) return { config: (mode << 3) | rights, address: near };
  const size = 8 << random.below(10);
  return { config: (mode << 3) | rights, address: napot((near << 2n) & ~BigInt(size - 1), size) };
}

test('PMP: what S and U may reach, and the trap where they may not, is as on QEMU', async (t) => {
  const qemu = probeQemuSystem();
  if ('missing' in qemu) {
    t.log(`SKIPPED: ${qemu.missing}`);
    t.pass();
    return;
  }
  const random = new Random(SEED);
  const program = new SystemProgramBuilder();
  const ECALLS = 256;
  // Code lies apart from what the stores change: QEMU 7.2 checks execution once for a run of instructions, so one
  // ecall must be all that is ever run
  const data = program.tables.reserve(4096, 4096);
  const code = program.tables.reserve(4096, 4096);
  for (let i = 0; i < ECALLS; i++) program.tables.u64At(code + 8 * i, 0x0000_0073_0000_0073n);
  // Entry 0 lets S and U run the cases themselves
  const whole: Entry = { config: (NAPOT << 3) | READ_EXECUTE, address: napot(BigInt(CODE_BASE), CODE_BYTES) };
  for (let i = 0; i < 2 * CASES; i++) {
    const { name, word, bytes } = random.pick(ACCESSES);
    const spot = (name === 'fetch' ? code : data) + 1024;
    const entries = [whole, ...Array.from({ length: ENTRIES - 1 }, () => randomEntry(random, BigInt(spot)))];
    const config = (from: number) =>
      entries
        .slice(from, from + 8)
        .reduce((sum, entry, index) => sum | (BigInt(entry.config) << BigInt(8 * index)), 0n);
    const a1 = BigInt(spot + bytes * (random.below(32) - 16));
    program.add({
      name,
      words: [word],
      mode: random.pick(['S', 'U']),
      mstatus: 0n,
      csrs: [
        ...entries.map(({ address }, index) => [CSR.pmpaddr0 + index, address] as const),
        [CSR.pmpcfg0, config(0)],
        [CSR.pmpcfg0 + 2, config(8)],
      ],
      a1,
      about: `0x${a1.toString(16)} ${entries
        .slice(1)
        .map((e) => `${e.config.toString(16)}:${(e.address << 2n).toString(16)}`)
        .join(' ')}`,
    });
  }
  program.finish();
  const { texts, causes } = systemDifferences(program, new BareHart().run(program), await runOnQemuSystem(program), []);
  t.log(`${program.cases.length} cases, seed ${SEED}, ${qemu.version}`);
  for (const text of texts.slice(0, 8)) t.log(text);
  t.is(texts.length, 0);
  // Fetch, load and store faults, and the ecalls of U and S where nothing was in the way
  for (const cause of [1, 5, 7, 8, 9]) t.true(causes.has(cause), `mcause ${cause} was seen`);
});
