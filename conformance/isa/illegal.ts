// Words that we call illegal, each run where a trap is expected: QEMU must raise SIGILL, our hart cause 2.
import {
  addi,
  branchOffset,
  Code,
  csrr,
  csrrwi,
  csrw,
  ECALL,
  FCSR,
  jal,
  ld,
  MRET,
  Section,
  sd,
  WFI,
} from './assembler.ts';
import { type Case, CODE_BASE, DATA_BASE, finishProgram, type Program } from './program.ts';

/** The register that holds where to go on, and the one that says what was raised */
const CONTINUATION = 30;
const RAISED = 31;

const RT_SIGACTION = 134;
const SA_SIGINFO = 4n;
const SIGILL = 4;
/** Others that a word which is not illegal might raise: SIGTRAP, SIGBUS, SIGSEGV */
const SIGNALS = [SIGILL, 5, 7, 11];
/** Offset of pc in ucontext; x1, x2 … follow */
const UCONTEXT_PC = 176;

const MEPC = 0x341;
const MCAUSE = 0x342;
const CAUSE_ILLEGAL = 2;
const CAUSE_ECALL_M = 11;
const RET = 0x0000_8067;
const bne = (rs1: number, offset: number) => 0x1063 | (rs1 << 15) | branchOffset(offset);

/** A word, and the dynamic rounding mode that it runs with */
export interface IllegalWord {
  readonly word: number;
  readonly frm: number;
}

/** A program that runs each word once and stores what it raised, as a signal number. */
export function illegalProgram(words: readonly IllegalWord[]): Program {
  const code = new Section(CODE_BASE, 8 << 20);
  const data = new Section(DATA_BASE, 8 << 20);
  const emit = new Code(code);
  const HANDLER_WORDS = 11;
  emit.word(jal(0, 4 + 4 * HANDLER_WORDS));

  // QEMU: a0 is the signal, a2 the ucontext
  const signalHandler = emit.here;
  emit.word(ld(5, 12, UCONTEXT_PC + 8 * CONTINUATION));
  emit.word(sd(5, 12, UCONTEXT_PC));
  emit.word(sd(10, 12, UCONTEXT_PC + 8 * RAISED));
  emit.word(RET);

  // Our hart: the last ecall ends it
  const trapHandler = emit.here;
  emit.word(csrr(RAISED, MCAUSE));
  emit.word(addi(RAISED, RAISED, -CAUSE_ECALL_M));
  emit.word(bne(RAISED, 8));
  emit.word(WFI);
  emit.word(addi(RAISED, RAISED, CAUSE_ECALL_M - CAUSE_ILLEGAL + SIGILL));
  emit.word(csrw(MEPC, CONTINUATION));
  emit.word(MRET);

  const action = data.reserve(24); // handler, flags, mask
  data.u64At(action, BigInt(signalHandler));
  data.u64At(action + 8, SA_SIGINFO);
  for (const signal of SIGNALS) {
    emit.word(addi(10, 0, signal));
    emit.address(11, action);
    emit.word(addi(12, 0, 0));
    emit.word(addi(13, 0, 8));
    emit.word(addi(17, 0, RT_SIGACTION));
    emit.word(ECALL);
  }
  const bare = { entry: emit.here, trapHandler };
  emit.word(addi(3, 0, 0)); // where QEMU's start and ours differ
  for (const register of [10, 11, 12, 13, 17]) emit.word(addi(register, 0, 0));

  const cases: Case[] = [];
  for (const { word, frm } of words) {
    const result = data.reserve(8);
    cases.push({ name: 'illegal', word, operands: `frm=${frm}`, codeFrom: emit.here, from: result, to: result + 8 });
    emit.word(csrrwi(FCSR.frm, frm));
    const bytes = (word & 3) === 3 ? 4 : 2;
    emit.address(CONTINUATION, emit.here + 12 + bytes);
    emit.word(addi(RAISED, 0, 0));
    emit.word(word);
    emit.address(5, result);
    emit.word(sd(RAISED, 5, 0));
  }
  finishProgram(emit, data);
  return { code, data, cases, bare };
}

/** What every case must have stored */
export const RAISED_ILLEGAL = BigInt(SIGILL);
