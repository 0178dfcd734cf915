// Who says what is right for an instruction: QEMU, a model of a line or two, or nobody here, and then why.
import type { Row } from '../../emulator/isa/mod.ts';
import type { Model } from './cases.ts';
import { rs1Of, rs2Of } from './operands.ts';
import type { Setup } from './program.ts';

export type Peer =
  | { readonly kind: 'qemu'; readonly corrected?: { readonly model: Model; readonly why: string } }
  | { readonly kind: 'model'; readonly model?: Model; readonly why: string }
  | { readonly kind: 'none'; readonly why: string };

const x = (setup: Setup, index: number): bigint => setup.x.get(index) ?? 0n;

const NOT_IN_QEMU = 'not known to QEMU 7.2';
const PRIVILEGED = 'traps in user mode: compared by system.test.ts';

const MODELS: Readonly<Record<string, Model>> = {
  'czero.eqz': (setup, word) => (x(setup, rs2Of(word)) === 0n ? 0n : x(setup, rs1Of(word))),
  'czero.nez': (setup, word) => (x(setup, rs2Of(word)) === 0n ? x(setup, rs1Of(word)) : 0n),
};

/** QEMU 7.2 counts on into the upper half where the lower half is zero; the specification says 32 */
const ctzw: Model = (setup, word) => (BigInt.asUintN(32, x(setup, rs1Of(word))) === 0n ? 32n : undefined);

export function peerOf(row: Row): Peer {
  const model = MODELS[row.name];
  if (model) return { kind: 'model', model, why: NOT_IN_QEMU };
  if (row.name === 'ctzw') return { kind: 'qemu', corrected: { model: ctzw, why: 'QEMU 7.2 looks at 64 bits of 0' } };
  if (row.extension === 'Zicbom' || row.extension === 'Zicboz') return { kind: 'model', why: NOT_IN_QEMU };
  if (['M-mode', 'S-mode', 'Svinval'].includes(row.extension)) return { kind: 'none', why: PRIVILEGED };
  if (row.name === 'ecall' || row.name === 'ebreak') return { kind: 'none', why: PRIVILEGED };
  return { kind: 'qemu' };
}
