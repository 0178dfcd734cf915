// What traps, or is allowed and harmless, depending on the mode: calls of the handler, privileged and illegal
// instructions, jumps to nowhere, pages that are mapped in peculiar ways, and changes of the address space.
import { encode } from '../../emulator/isa/mod.ts';
import { CSR, SERVICES, X } from './handlers.ts';
import { ABSENT, PAGE, WINDOW } from './layout.ts';
import { access } from './memory_items.ts';
import type { Node } from './nodes.ts';
import type { Scope } from './scope.ts';
import type { Words } from './words.ts';

const { ra, zero, a6, a7 } = X;
/** Instructions that a trap executes, about */
export const TRAP_COST = 60;

export interface TrapRules {
  /** Legs without paging: nothing is at the window's addresses then */
  readonly bare: boolean;
  readonly anyMachine: boolean;
  /** All legs are of a machine that has paging on for who it lends its loads and stores from (mstatus.MPRV) */
  readonly borrows: boolean;
  readonly anySupervisor: boolean;
  /** satp of the supervisor's two spaces, exclusive or */
  readonly satpToggle: bigint;
}

export const trapping = (body: readonly Node[]): Node[] => [{ t: 'group', body, cost: TRAP_COST + body.length }];
export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;

/** @param mayCall the return address may be overwritten */
export function trapItems(scope: Scope, words: Words, rules: TrapRules, mayCall: boolean): Node[] | undefined {
  const { random } = scope;
  switch (random.below(8)) {
    case 0:
    case 1: {
      const service = random.below(SERVICES.length + 2);
      if (scope.isReserved(a7) || scope.isReserved(a6)) return undefined;
      return trapping([encode('addi', { rd: a7, imm: service }), encode('ecall')]);
    }
    case 2: {
      const legal = { sret: !rules.anyMachine && !rules.anySupervisor, mret: !rules.anyMachine };
      return trapping([words.privileged(scope, legal)]);
    }
    case 3:
      return switchSpace(scope, rules);
    case 4:
      return mayCall ? badJump(scope, rules) : undefined;
    default:
      return window(scope, words, rules);
  }
}

/** By the program itself, where it is the supervisor; elsewhere each instruction traps */
function switchSpace(scope: Scope, { satpToggle }: TrapRules): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(2, (satp, toggle) => {
    const change: Node[] = [
      { t: 'constant', rd: toggle, value: hex(satpToggle) },
      encode('xor', { rd: satp, rs1: satp, rs2: toggle }),
      encode('csrrw', { rs1: satp, csr: CSR.satp }),
      // The spaces have different numbers
      ...(random.once(2) ? [] : [encode('sfence.vma')]),
    ];
    const body: Node[] = [
      encode('addi', { rd: satp }),
      encode('csrrs', { rd: satp, csr: CSR.satp }),
      { t: 'if', on: 'beq', rs1: satp, rs2: zero, yes: [], no: change },
    ];
    return [{ t: 'group', body, cost: 3 * TRAP_COST }];
  });
}

/** The handler goes on behind it */
function badJump(scope: Scope, { bare }: TrapRules): Node[] | undefined {
  const targets = bare ? [ABSENT, WINDOW] : [ABSENT, WINDOW, WINDOW + 6 * PAGE, WINDOW + 8 * PAGE, 0x7f_0000_0000];
  return scope.reserve(1, (rd) =>
    trapping([{ t: 'constant', rd, value: hex(scope.random.pick(targets)) }, encode('jalr', { rd: ra, rs1: rd })]),
  );
}

/** A page that is mapped in some peculiar way. Without paging nothing is there, and accesses must be aligned. */
function window(scope: Scope, words: Words, { bare }: TrapRules): Node[] | undefined {
  const { random } = scope;
  return scope.reserve(1, (rd) => {
    const page = random.below(14);
    const absent = bare || page === 9 || page === 8;
    const border = !absent && random.once(4);
    const offset = border ? PAGE - 1 - random.below(8) : 8 * random.below(500);
    const accesses = Array.from({ length: 1 + random.below(3) }, () =>
      access(scope, words, rd, border ? random.below(4) : random.below(32), absent),
    );
    const body: Node[] = [{ t: 'constant', rd, value: hex(WINDOW + page * PAGE + offset) }, ...accesses];
    if (!absent && !border && page < 8 && random.once(3)) body.push(words.amo(scope, rd));
    return [{ t: 'group', body, cost: TRAP_COST * accesses.length }];
  });
}
