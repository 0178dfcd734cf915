import { resolve } from 'node:path';
import { ControlError } from './fields.ts';
import type { DiskFile } from './vm_options.ts';

/** The images of a disk, the upper first. */
export function chainOf(file: DiskFile): DiskFile[] {
  const chain: DiskFile[] = [];
  for (let layer: DiskFile | undefined = file; layer !== undefined; layer = layer.backing) chain.push(layer);
  return chain;
}

/** How an image of a chain may be named, and the parameter that did */
export interface LayerName {
  readonly file: string | undefined;
  readonly node: string | undefined;
}

/**
 * How many images are above the one that a file name or a node name means; undefined where neither is given. QEMU's
 * words for what is wrong. @throws ControlError
 */
export function depthOf(chain: readonly DiskFile[], what: 'top' | 'base', name: LayerName): number | undefined {
  const { file, node } = name;
  if (file !== undefined && node !== undefined) {
    throw refuse(`'${what}-node' and '${what}' are mutually exclusive`);
  }
  if (node !== undefined) {
    const depth = chain.findIndex((layer) => layer.node === node);
    if (depth < 0) throw refuse(`Node '${node}' is not in the backing chain of the disk`);
    return depth;
  }
  if (file === undefined) return undefined;
  const depth = chain.findIndex((layer) => layer.file === file || layer.file === resolve(file));
  if (depth < 0) {
    throw refuse(what === 'top' ? `Top image file ${file} not found` : `Can't find '${file}' in the backing chain`);
  }
  return depth;
}

/** The chain without the images from `from` to before `to`. */
export function withoutLayers(chain: readonly DiskFile[], from: number, to: number): DiskFile {
  const kept = [...chain.slice(0, from), ...chain.slice(to)];
  return kept.reduceRight<DiskFile | undefined>((backing, layer) => {
    const { backing: _, ...own } = layer;
    return backing === undefined ? own : { ...own, backing };
  }, undefined)!;
}

function refuse(text: string): ControlError {
  return new ControlError('ERR_CONTROL_PARAMETER', text);
}
