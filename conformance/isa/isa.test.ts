// Every instruction of the table on random operands and corner values, against QEMU's user mode: results, memory,
// flags, in every rounding mode. What QEMU 7.2 does not know is compared with a model and listed as such.
//
//   CAISSON_ISA_SEED=n CAISSON_ISA_CASES=n  choose the random numbers and how many cases an instruction gets
import test, { type ExecutionContext } from 'ava';
import { expandCompressed, findInstruction, INSTRUCTIONS, type Row } from '../../emulator/isa/mod.ts';
import { BareHart } from './bare_hart.ts';
import { addCase, type Model } from './cases.ts';
import { COMPRESSED_FORMS, compressedWords, formOf } from './compressed_forms.ts';
import { differencesOf } from './differences.ts';
import { type IllegalWord, illegalProgram, RAISED_ILLEGAL } from './illegal.ts';
import { type Peer, peerOf } from './peers.ts';
import { ProgramBuilder } from './program.ts';
import { probeQemu, runOnQemu } from './qemu.ts';
import { Random } from './random.ts';
import { randomDynamicRounding, randomIllegalWord, randomWord } from './words.ts';

const SEED = Number(process.env.CAISSON_ISA_SEED ?? 1);
const CASES = Number(process.env.CAISSON_ISA_CASES ?? 1000);
/** Cases of one program: its code must stay within a jump's reach of its data */
const BATCH = 1000;
const SHOWN_DIFFERENCES = 5;

const qemu = probeQemu();
const hart = new BareHart();

interface Outcome {
  readonly cases: number;
  readonly differences: readonly string[];
}

/** What the data section must be: QEMU's, or, where a model speaks, the model's */
async function expectedData(program: ProgramBuilder, peer: Peer): Promise<Uint8Array> {
  const data = peer.kind === 'qemu' ? await runOnQemu(program) : program.data.bytes.slice();
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  for (const [address, value] of program.expected) view.setBigUint64(address - program.data.base, value, true);
  return data;
}

/** Runs `words` in batches. Every word is one case, or none where no case can be made of it. */
async function compareWords(name: string, words: Iterable<number>, peer: Peer, random: Random): Promise<Outcome> {
  const model: Model | undefined =
    peer.kind === 'model' ? peer.model : peer.kind === 'qemu' ? peer.corrected?.model : undefined;
  const outcome = { cases: 0, differences: [] as string[] };
  let program = new ProgramBuilder(random);
  const finish = async () => {
    program.finish();
    const expected = await expectedData(program, peer);
    outcome.differences.push(...differencesOf(program, expected, hart.run(program)).map(({ text }) => text));
    outcome.cases += program.cases.length;
    program = new ProgramBuilder(random);
  };
  for (const word of words) {
    addCase(program, name, word, (word & 3) === 3 ? word : expandCompressed(word), model);
    if (program.cases.length === BATCH) await finish();
  }
  if (program.cases.length > 0) await finish();
  return outcome;
}

function* randomWords(row: Row, random: Random): Generator<number> {
  // A few of the words make no case (a load from address zero, say): enough are tried that CASES remain.
  for (let i = 0; i < CASES * 1.25; i++) yield randomWord(row, random);
}

function report(t: ExecutionContext, rows: ReadonlyMap<string, Outcome>): void {
  t.log([...rows].map(([name, { cases }]) => `${name} ${cases}`).join(', '));
  const total = [...rows.values()].reduce((sum, { cases }) => sum + cases, 0);
  t.log(`${rows.size} instructions, ${total} cases, seed ${SEED}`);
  for (const [name, { cases, differences }] of rows) {
    for (const text of differences.slice(0, SHOWN_DIFFERENCES)) t.log(text);
    t.is(differences.length, 0, `${name}: ${differences.length} of ${cases} cases differ`);
    t.true(cases >= CASES, `${name}: only ${cases} cases`);
  }
}

function skip(t: ExecutionContext): boolean {
  if ('version' in qemu) return false;
  t.log(`SKIPPED: ${qemu.missing}`);
  t.pass();
  return true;
}

const EXTENSIONS = [...new Set(INSTRUCTIONS.map(({ extension }) => extension))];

for (const extension of EXTENSIONS) {
  const rows = INSTRUCTIONS.filter((row) => row.extension === extension);
  const compared = rows.filter((row) => peerOf(row).kind === 'qemu');
  const modelled = rows.filter((row) => peerOf(row).kind === 'model');

  if (compared.length > 0) {
    test.serial(`${extension}: every instruction does what QEMU does`, async (t) => {
      if (skip(t)) return;
      const outcomes = new Map<string, Outcome>();
      for (const row of compared) {
        const random = new Random(SEED);
        const peer = peerOf(row);
        outcomes.set(row.name, await compareWords(row.name, randomWords(row, random), peer, random));
        if (peer.kind === 'qemu' && peer.corrected)
          t.log(`${row.name}: QEMU corrected by a model: ${peer.corrected.why}`);
      }
      report(t, outcomes);
    });
  }

  if (modelled.length > 0) {
    test.serial(`${extension}: every instruction does what its model says`, async (t) => {
      const outcomes = new Map<string, Outcome>();
      for (const row of modelled) {
        const random = new Random(SEED);
        const peer = peerOf(row);
        outcomes.set(row.name, await compareWords(row.name, randomWords(row, random), peer, random));
        if (peer.kind === 'model') t.log(`${row.name}: ${peer.why}`);
      }
      report(t, outcomes);
    });
  }
}

test.serial('C: every legal 16-bit word does what QEMU does', async (t) => {
  if (skip(t)) return;
  const wordsOf = Map.groupBy(compressedWords(), (word) => formOf(word)?.name ?? 'none');
  const outcomes = new Map<string, Outcome>();
  const random = new Random(SEED);
  for (const { name } of COMPRESSED_FORMS) {
    if (name === 'c.ebreak') continue; // traps in user mode
    const legal = (wordsOf.get(name) ?? []).filter((word) => findInstruction(expandCompressed(word)) !== undefined);
    t.true(legal.length > 0, `${name} has legal words`);
    // Each word at least once, and all of them again until there are enough
    function* words() {
      let made = 0;
      do {
        for (const word of legal) {
          yield word;
          made++;
        }
      } while (made < CASES * 1.25);
    }
    outcomes.set(name, await compareWords(name, words(), { kind: 'qemu' }, random));
  }
  report(t, outcomes);
});

async function compareIllegal(t: ExecutionContext, words: readonly IllegalWord[]): Promise<void> {
  for (let first = 0; first < words.length; first += 2 * BATCH) {
    const program = illegalProgram(words.slice(first, first + 2 * BATCH));
    const theirs = await runOnQemu(program);
    const ours = hart.run(program);
    for (const { text } of differencesOf(program, theirs, ours).slice(0, SHOWN_DIFFERENCES)) t.fail(text);
    const raised = new BigUint64Array(Uint8Array.from(ours).buffer);
    const unexpected = program.cases.find(({ from }) => raised[(from - program.data.base) / 8] !== RAISED_ILLEGAL);
    t.is(unexpected, undefined);
  }
  t.log(`${words.length} words, each an illegal instruction on both sides`);
}

test.serial('Every 16-bit word that we call illegal is illegal to QEMU', async (t) => {
  if (skip(t)) return;
  const words = [...compressedWords()].filter((word) => findInstruction(expandCompressed(word)) === undefined);
  await compareIllegal(
    t,
    words.map((word) => ({ word, frm: 0 })),
  );
});

test.serial(
  '32-bit words that we call illegal are illegal to QEMU: random ones, and ones a bit away from a legal one',
  async (t) => {
    if (skip(t)) return;
    const random = new Random(SEED);
    await compareIllegal(
      t,
      Array.from({ length: 20 * CASES }, () => ({ word: randomIllegalWord(random), frm: 0 })),
    );
  },
);

test.serial('Dynamic rounding with a reserved frm is an illegal instruction', async (t) => {
  if (skip(t)) return;
  const random = new Random(SEED);
  const words = INSTRUCTIONS.flatMap((row) =>
    [5, 6, 7].map((frm) => ({ word: randomDynamicRounding(row, random), frm })),
  );
  const rounding = words.filter((entry): entry is IllegalWord => entry.word !== undefined);
  t.is(rounding.length, 3 * 36);
  await compareIllegal(t, rounding);
});

test('Instructions that are compared elsewhere or not at all are named', (t) => {
  for (const row of INSTRUCTIONS) {
    const peer = peerOf(row);
    if (peer.kind === 'none') t.log(`${row.name}: ${peer.why}`);
  }
  t.pass();
});
