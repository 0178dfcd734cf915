// Control flow as WebAssembly wants it: nested blocks and loops, recovered by dominators (Ramsey, "Beyond Relooper",
// ICFP 2022). Several entries, and loops with several, are made regular by dispatch nodes: a label, then one jump.
import { isCopied } from './inlining.ts';
import { type Block, type Region, successorsOf } from './region.ts';

export interface FlowEdge {
  readonly from: FlowNode;
  /** Block that is meant; `to` may be a dispatch node on the way */
  readonly target: number;
  to: FlowNode;
  /** Labels to set on the way: dispatch node, and the number of its edge */
  readonly labels: { readonly node: FlowNode; readonly value: number }[];
}

export interface FlowNode {
  /** 'entry' is the one root */
  readonly kind: 'entry' | 'block' | 'dispatch';
  readonly block: Block | undefined;
  readonly edges: FlowEdge[];
  /** Place in reverse postorder */
  order: number;
  /** Order of the immediate dominator */
  dominator: number;
  /** Nodes that it dominates immediately and that several forward edges reach, last first */
  merges: FlowNode[];
  isMerge: boolean;
  isLoop: boolean;
}

export interface Flow {
  readonly root: FlowNode;
  /** In reverse postorder */
  readonly nodes: readonly FlowNode[];
  readonly nodeOf: ReadonlyMap<number, FlowNode>;
  /** Blocks by which the function may be entered; the edges of the root, in order */
  readonly entries: readonly number[];
}

const node = (kind: FlowNode['kind'], block?: Block): FlowNode => ({
  kind, block, edges: [], order: -1, dominator: -1, merges: [], isMerge: false, isLoop: false,
}); // biome-ignore format: one value

/** At most so many entries: their number travels in a byte */
const MAX_ENTRIES = 200;

/** Orders a region: entries are its start, loop headers, where calls and the kernel come back, and where the interpreter
 * resumes. */
export function structure(region: Region): Flow {
  const nodeOf = new Map<number, FlowNode>();
  for (const block of region.blocks.values()) nodeOf.set(block.at, node('block', block));
  const all = [...nodeOf.values()];
  for (const from of all) {
    for (const target of successorsOf(region, from.block!)) {
      from.edges.push({ from, target, to: nodeOf.get(target)!, labels: [] });
    }
  }
  const entries = findEntries(region, nodeOf);
  const root = node('entry');
  for (const target of entries) root.edges.push({ from: root, target, to: nodeOf.get(target)!, labels: [] });
  all.push(root);
  const cut = new Set<FlowEdge>();
  makeReducible(all, all.slice(), cut);
  const nodes = order(root);
  dominate(nodes);
  return { root, nodes, nodeOf, entries };
}

function findEntries(region: Region, nodeOf: ReadonlyMap<number, FlowNode>): number[] {
  const entries = new Set([region.start]);
  const state = new Map<FlowNode, 1 | 2>();
  const visit = (from: FlowNode): void => {
    // Depth-first with an explicit stack: regions can be long chains
    const stack: { at: FlowNode; next: number }[] = [{ at: from, next: 0 }];
    state.set(from, 1);
    while (stack.length > 0) {
      const top = stack.at(-1)!;
      const edge = top.at.edges[top.next++];
      if (edge === undefined) {
        state.set(top.at, 2);
        stack.pop();
      } else if (state.get(edge.to) === 1) {
        if (entries.size < MAX_ENTRIES) entries.add(edge.target);
      } else if (!state.has(edge.to)) {
        state.set(edge.to, 1);
        stack.push({ at: edge.to, next: 0 });
      }
    }
  };
  visit(nodeOf.get(region.start)!);
  for (const at of region.resumes) {
    if (entries.size < MAX_ENTRIES) entries.add(at);
    const resumed = nodeOf.get(at)!;
    if (!state.has(resumed)) visit(resumed);
  }
  for (const { end } of region.blocks.values()) {
    const back = end.kind === 'call' ? end.back : end.kind === 'system' ? end.to : -1;
    if (nodeOf.has(back) && entries.size < MAX_ENTRIES) entries.add(back);
  }
  // A function is entered by its own code alone: what a copy goes on with depends on the call
  return [...entries].filter((at) => !isCopied(at));
}

/**
 * Finds loops inside out: each strongly connected component with one node that is entered from outside is a loop.
 * One with several gets a dispatch node before them; where only the root enters the others, back edges need not pass it.
 */
function makeReducible(all: FlowNode[], within: readonly FlowNode[], cut: Set<FlowEdge>): void {
  for (const component of components(within, cut)) {
    const inside = new Set(component);
    if (component.length === 1 && !component[0]!.edges.some((edge) => !cut.has(edge) && edge.to === component[0])) {
      continue;
    }
    const entering = new Map<FlowNode, FlowEdge[]>();
    for (const from of all) {
      if (inside.has(from)) continue;
      for (const edge of from.edges) {
        if (cut.has(edge) || !inside.has(edge.to)) continue;
        const known = entering.get(edge.to);
        if (known === undefined) entering.set(edge.to, [edge]);
        else known.push(edge);
      }
    }
    const header = entering.size <= 1 ? ([...entering.keys()][0] ?? component[0]!) : dispatch(entering, component, cut);
    if (header.kind === 'dispatch' && !inside.has(header)) {
      all.push(header);
      inside.add(header);
    }
    for (const from of inside) {
      for (const edge of from.edges) if (edge.to === header) cut.add(edge);
    }
    inside.delete(header);
    makeReducible(all, [...inside], cut);
  }
}

function dispatch(
  entering: ReadonlyMap<FlowNode, readonly FlowEdge[]>,
  component: readonly FlowNode[],
  cut: ReadonlySet<FlowEdge>,
): FlowNode {
  const members = new Set(component);
  const weight = (to: FlowNode): number => {
    let total = 0;
    for (const edge of entering.get(to)!) if (edge.from.kind === 'block') total += 1000;
    // The first head's back edges pass the dispatcher: better none that an inner loop goes round by
    if (reachesItself(to, members, entering, cut)) total -= 500;
    for (const from of component) for (const edge of from.edges) if (edge.to === to) total++;
    return total;
  };
  const weights = new Map([...entering.keys()].map((head) => [head, weight(head)]));
  const heads = [...weights.keys()].sort((a, b) => weights.get(b)! - weights.get(a)!);
  const made = node('dispatch');
  for (const [value, to] of heads.entries()) {
    for (const edge of entering.get(to)!) {
      edge.labels.push({ node: made, value });
      edge.to = made;
    }
    made.edges.push({ from: made, target: to.block?.at ?? -1, to, labels: [] });
  }
  // Heads that code outside the loop jumps to, not the root alone: the loop is irreducible there
  const real = heads.filter((to) => entering.get(to)!.some(({ from }) => from.kind === 'block'));
  for (const [value, to] of heads.entries()) {
    if (value !== 0 && !(real.length > 1 && real.includes(to))) continue;
    for (const from of component) {
      for (const edge of from.edges) {
        if (edge.to !== to || cut.has(edge)) continue;
        edge.labels.push({ node: made, value });
        edge.to = made;
      }
    }
  }
  return made;
}

/** Whether a head comes back to itself inside the component without passing another. */
function reachesItself(
  head: FlowNode,
  members: ReadonlySet<FlowNode>,
  heads: ReadonlyMap<FlowNode, unknown>,
  cut: ReadonlySet<FlowEdge>,
): boolean {
  const seen = new Set([head]);
  for (const from of seen) {
    for (const edge of from.edges) {
      if (edge.to === head && !cut.has(edge)) return true;
      if (!cut.has(edge) && members.has(edge.to) && !heads.has(edge.to)) seen.add(edge.to);
    }
  }
  return false;
}

/** Strongly connected components (Tarjan), without recursion. */
function components(within: readonly FlowNode[], cut: ReadonlySet<FlowEdge>): FlowNode[][] {
  const members = new Set(within);
  const index = new Map<FlowNode, number>();
  const low = new Map<FlowNode, number>();
  const open = new Set<FlowNode>();
  const path: FlowNode[] = [];
  const result: FlowNode[][] = [];
  for (const start of within) {
    if (index.has(start)) continue;
    const stack: { at: FlowNode; next: number }[] = [];
    const enter = (at: FlowNode): void => {
      index.set(at, index.size);
      low.set(at, index.size - 1);
      path.push(at);
      open.add(at);
      stack.push({ at, next: 0 });
    };
    enter(start);
    while (stack.length > 0) {
      const top = stack.at(-1)!;
      const edge = top.at.edges[top.next++];
      if (edge !== undefined) {
        if (cut.has(edge) || !members.has(edge.to)) continue;
        if (!index.has(edge.to)) enter(edge.to);
        else if (open.has(edge.to)) low.set(top.at, Math.min(low.get(top.at)!, index.get(edge.to)!));
        continue;
      }
      stack.pop();
      const parent = stack.at(-1);
      if (parent !== undefined) low.set(parent.at, Math.min(low.get(parent.at)!, low.get(top.at)!));
      if (low.get(top.at) !== index.get(top.at)) continue;
      const component: FlowNode[] = [];
      for (;;) {
        const member = path.pop()!;
        open.delete(member);
        component.push(member);
        if (member === top.at) break;
      }
      result.push(component);
    }
  }
  return result;
}

/** Reverse postorder; only what the root reaches */
function order(root: FlowNode): FlowNode[] {
  const nodes: FlowNode[] = [];
  const seen = new Set([root]);
  const stack: { at: FlowNode; next: number }[] = [{ at: root, next: root.edges.length }];
  while (stack.length > 0) {
    const top = stack.at(-1)!;
    // From the last edge to the first, so that the first comes soonest after its node
    if (top.next === 0) {
      nodes.push(top.at);
      stack.pop();
      continue;
    }
    const { to } = top.at.edges[--top.next]!;
    if (seen.has(to)) continue;
    seen.add(to);
    stack.push({ at: to, next: to.edges.length });
  }
  nodes.reverse();
  for (const [index, at] of nodes.entries()) at.order = index;
  return nodes;
}

/** Immediate dominators (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm"), merges and loops. */
function dominate(nodes: readonly FlowNode[]): void {
  const predecessors: number[][] = nodes.map(() => []);
  for (const from of nodes) for (const edge of from.edges) predecessors[edge.to.order]!.push(from.order);
  nodes[0]!.dominator = 0;
  const meet = (a: number, b: number): number => {
    let [x, y] = [a, b];
    while (x !== y) {
      while (x > y) x = nodes[x]!.dominator;
      while (y > x) y = nodes[y]!.dominator;
    }
    return x;
  };
  for (let changed = true; changed; ) {
    changed = false;
    for (const at of nodes) {
      if (at.order === 0) continue;
      let found = -1;
      for (const from of predecessors[at.order]!) {
        if (nodes[from]!.dominator >= 0) found = found < 0 ? from : meet(from, found);
      }
      if (found !== at.dominator) {
        at.dominator = found;
        changed = true;
      }
    }
  }
  for (const at of nodes) {
    const before = predecessors[at.order]!;
    at.isLoop = before.some((from) => from >= at.order);
    at.isMerge = before.filter((from) => from < at.order).length > 1;
    if (at.isMerge) nodes[at.dominator]!.merges.push(at);
  }
  for (const at of nodes) at.merges.sort((a, b) => b.order - a.order);
}
