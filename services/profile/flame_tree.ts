import type { FoldedStack } from '../../protocols/folded/mod.ts';

/** Frames below this share of all samples are left out: nobody could see them */
const SMALLEST_SHARE = 1 / 20_000;

/** What the page draws: nodes in depth-first order, five numbers each: name, depth, start, value, self. */
export interface FlameTree {
  readonly names: readonly string[];
  readonly nodes: readonly number[];
}

interface Node {
  readonly name: number;
  value: number;
  self: number;
  readonly children: Map<number, Node>;
}

/** Merges stacks by their common callers; siblings are in the order of their names, as flame graphs have them. */
export function buildFlameTree(stacks: readonly FoldedStack[], rootName: string): FlameTree {
  const names = new Map<string, number>();
  const indexOf = (name: string): number => {
    const known = names.get(name);
    if (known !== undefined) return known;
    names.set(name, names.size);
    return names.size - 1;
  };
  const root: Node = { name: indexOf(rootName), value: 0, self: 0, children: new Map() };
  for (const { frames, count } of stacks) {
    let node = root;
    node.value += count;
    for (const frame of frames) {
      const name = indexOf(frame);
      let child = node.children.get(name);
      if (child === undefined) {
        child = { name, value: 0, self: 0, children: new Map() };
        node.children.set(name, child);
      }
      child.value += count;
      node = child;
    }
    node.self += count;
  }
  const list = [...names.keys()];
  const nodes: number[] = [];
  const smallest = root.value * SMALLEST_SHARE;
  const visit = (node: Node, depth: number, start: number): void => {
    nodes.push(node.name, depth, start, node.value, node.self);
    let at = start;
    const children = [...node.children.values()].sort((a, b) => (list[a.name]! < list[b.name]! ? -1 : 1));
    for (const child of children) {
      if (child.value >= smallest) visit(child, depth + 1, at);
      at += child.value;
    }
  };
  visit(root, 0, 0);
  return { names: list, nodes };
}
