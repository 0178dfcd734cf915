// Short loops remember the pages that their pointers were in at the last turn: two instructions instead of a look-up,
// and no loads between a pointer and what it points to.
import { groupAccesses, SIZES } from './access_groups.ts';
import type { Flow, FlowNode } from './flow.ts';
import { X } from './instruction.ts';

/** Longer loops, and those with more instructions for an access, lose more by the locals than they win */
const MAX_INSTRUCTIONS = 48;
const INSTRUCTIONS_PER_ACCESS = 10;
/** Pointers of one loop, and of a function, that have a cache */
const MAX_OF_LOOP = 3;
const MAX_OF_FUNCTION = 6;

/** What the loops of a function remember of the page that a register pointed into */
export interface PageCachePlan {
  /** The widest access or group of accesses by it, in bytes */
  span: number;
  loads: boolean;
  stores: boolean;
}

export interface PageCachePlans {
  /** By register */
  readonly plans: ReadonlyMap<number, PageCachePlan>;
  /** Of each block in a loop that uses caches: the registers */
  readonly registers: ReadonlyMap<number, ReadonlySet<number>>;
}

/** Chooses for each innermost loop without calls the registers that most accesses go by, but for those in `others`. */
export function planPageCaches(flow: Flow, others = 0): PageCachePlans {
  const plans = new Map<number, PageCachePlan>();
  const registers = new Map<number, ReadonlySet<number>>();
  for (const header of flow.nodes) {
    if (!header.isLoop) continue;
    const loop = bodyOf(flow, header);
    if (loop === undefined) continue;
    const accesses = accessesOf(loop);
    const total = [...accesses.values()].reduce((sum, { sites }) => sum + sites, 0);
    const size = loop.reduce((sum, { block }) => sum + block!.instructions.length, 0);
    if (size > MAX_INSTRUCTIONS || total * INSTRUCTIONS_PER_ACCESS < size) continue;
    const chosen = new Set<number>();
    for (const [register, its] of [...accesses].sort((a, b) => b[1].sites - a[1].sites)) {
      const plan = plans.get(register);
      if ((others >>> register) & 1) continue;
      if (chosen.size === MAX_OF_LOOP || (plan === undefined && plans.size === MAX_OF_FUNCTION)) continue;
      chosen.add(register);
      plans.set(register, {
        span: Math.max(its.span, plan?.span ?? 0),
        loads: its.loads || plan?.loads === true,
        stores: its.stores || plan?.stores === true,
      });
    }
    for (const { block } of loop) registers.set(block!.at, chosen);
  }
  return { plans, registers };
}

/** The nodes of an innermost loop of blocks; undefined where there is a loop, a call or a dispatcher in it. */
function bodyOf(flow: Flow, header: FlowNode): readonly FlowNode[] | undefined {
  const body = new Set([header]);
  const before = new Map<FlowNode, FlowNode[]>();
  for (const node of flow.nodes) {
    for (const { to } of node.edges) {
      if (to === header) {
        if (node.order >= header.order) body.add(node);
        continue;
      }
      const known = before.get(to);
      if (known === undefined) before.set(to, [node]);
      else known.push(node);
    }
  }
  for (const node of body) {
    if (node === header) continue;
    for (const from of before.get(node) ?? []) body.add(from);
  }
  const loop = [...body];
  const isPlain = loop.every(
    ({ block, isLoop }) =>
      block !== undefined &&
      block.end.kind !== 'call' &&
      block.end.kind !== 'guess' &&
      block.end.kind !== 'system' &&
      !(isLoop && block !== header.block),
  );
  return isPlain ? loop : undefined;
}

function accessesOf(loop: readonly FlowNode[]): Map<number, PageCachePlan & { sites: number }> {
  const found = new Map<number, PageCachePlan & { sites: number }>();
  for (const { block } of loop) {
    const groups = groupAccesses(block!.instructions);
    const seen = new Set<unknown>();
    for (const instruction of block!.instructions) {
      const { facts, rs1 } = instruction;
      const size = facts.loads && facts.rs1 === X ? SIZES[facts.row.name] : undefined;
      if (size === undefined) continue;
      const group = groups.get(instruction);
      if (group !== undefined && seen.has(group)) continue;
      seen.add(group);
      const stores = facts.rs2 !== 0;
      const its = group ?? { span: size, loads: !stores, stores };
      const known = found.get(rs1) ?? { span: 0, loads: false, stores: false, sites: 0 };
      found.set(rs1, {
        span: Math.max(known.span, its.span),
        loads: known.loads || its.loads,
        stores: known.stores || its.stores,
        sites: known.sites + 1,
      });
    }
  }
  return found;
}
