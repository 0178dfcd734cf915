import { type Extent, STATE } from '../../../../protocols/nbd/mod.ts';
import type { Mapping } from '../../../../protocols/qcow2/mod.ts';
import type { StatusBudget } from '../disk_image.ts';
import { ExtentList } from '../extent_list.ts';
import type { Qcow2Context } from './context.ts';
import { CorruptImageError } from './corrupt_image_error.ts';
import { decompressCluster } from './decompress.ts';

/** Grains that one block-status request looks at, in all images of a chain; the client asks again for the rest */
export const MAX_STATUS_GRAINS = 1 << 16;

const UNBOUNDED: StatusBudget = { left: Number.POSITIVE_INFINITY };

/** A piece of the disk with one kind of mapping, contiguous in the file where it is data */
export interface Run extends Mapping {
  /** On the disk, in `bytes` */
  readonly at: number;
  runBytes: number;
}

/** Reads through the map: what the image has, and under that the backing disk. The caller holds the map still. */
export class ClusterReader {
  readonly #context: Qcow2Context;
  #inflated: { host: number; bytes: Uint8Array } | undefined;

  constructor(context: Qcow2Context) {
    this.#context = context;
  }

  /** Compressed clusters may be others from here on. */
  forget(): void {
    this.#inflated = undefined;
  }

  /** Undefined where it needs more than memory, or is wrong: the way that may wait reports that. */
  runsNow(offset: number, lengthBytes: number): Run[] | undefined {
    const { map } = this.#context;
    const runs: Run[] = [];
    const end = offset + lengthBytes;
    try {
      for (let at = offset; at < end; ) {
        const mapping = map.lookupNow(Math.floor(at / map.grainBytes));
        if (mapping === undefined) return undefined;
        at = this.#addRun(runs, mapping, at, end);
      }
    } catch (error) {
      if (error instanceof CorruptImageError) return undefined;
      throw error;
    }
    return runs;
  }

  /** As far as `budget` goes, but at least one grain. @throws CorruptImageError */
  async runs(offset: number, lengthBytes: number, budget: StatusBudget = UNBOUNDED): Promise<Run[]> {
    const { map } = this.#context;
    const runs: Run[] = [];
    const end = offset + lengthBytes;
    for (let at = offset; at < end && (at === offset || budget.left > 0); budget.left--) {
      const grain = Math.floor(at / map.grainBytes);
      const mapping = map.lookupNow(grain) ?? (await map.lookup(grain));
      at = this.#addRun(runs, mapping, at, end);
    }
    return runs;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const { data, metadata } = this.#context;
    const { clusterBytes } = metadata.header;
    for (const run of await this.runs(offset, into.length)) {
      const piece = into.subarray(run.at - offset, run.at - offset + run.runBytes);
      if (run.kind === 'data') await data.read(run.host, piece);
      else if (run.kind === 'zero') piece.fill(0);
      else if (run.kind === 'unallocated') await this.#readBacking(run.at, piece);
      else {
        const bytes = await this.#inflate(run);
        for (let done = 0; done < piece.length; ) {
          const skip = (run.at + done) % clusterBytes;
          const count = Math.min(clusterBytes - skip, piece.length - done);
          piece.set(bytes.subarray(skip, skip + count), done);
          done += count;
        }
      }
    }
  }

  async blockStatus(
    offset: number,
    lengthBytes: number,
    maxExtents: number,
    budget: StatusBudget = { left: MAX_STATUS_GRAINS },
  ): Promise<Extent[]> {
    const { backing } = this.#context;
    const list = new ExtentList(maxExtents);
    for (const run of await this.#runsWithin(offset, lengthBytes, budget)) {
      if (run.kind === 'unallocated' && backing !== undefined) {
        // Nothing is left to look below with: what there is is an answer.
        if (!(await list.addBelow(backing, run.at, run.runBytes, budget)) || budget.left <= 0) break;
      } else if (!list.add(run.runBytes, statusOf(run))) break;
    }
    return list.extents;
  }

  /** Which parts of the disk this image itself has, without what is under it: `flags` 1 where it has something. */
  async ownExtents(
    offset: number,
    lengthBytes: number,
    budget: StatusBudget = { left: MAX_STATUS_GRAINS },
  ): Promise<Extent[]> {
    const list = new ExtentList();
    for (const run of await this.#runsWithin(offset, lengthBytes, budget)) {
      list.add(run.runBytes, run.kind === 'unallocated' ? 0 : 1);
    }
    return list.extents;
  }

  /** Half of the budget is for this image, where another one is under it: what it has must be of use, too. */
  async #runsWithin(offset: number, lengthBytes: number, budget: StatusBudget): Promise<Run[]> {
    const most = this.#context.backing === undefined ? budget.left : Math.ceil(budget.left / 2);
    const share = { left: most };
    const runs = await this.runs(offset, lengthBytes, share);
    budget.left -= most - share.left;
    return runs;
  }

  async #inflate({ host, lengthBytes }: Run): Promise<Uint8Array> {
    if (this.#inflated?.host === host) return this.#inflated.bytes;
    const { file, metadata } = this.#context;
    const { compression, clusterBytes } = metadata.header;
    const data = new Uint8Array(Math.min(lengthBytes, file.sizeBytes - host));
    await file.read(host, data);
    const bytes = await decompressCluster(compression, data, clusterBytes);
    this.#inflated = { host, bytes };
    return bytes;
  }

  async #readBacking(offset: number, into: Uint8Array): Promise<void> {
    const { backing } = this.#context;
    const there = Math.max(0, Math.min(into.length, (backing?.sizeBytes ?? 0) - offset));
    if (there > 0) await backing?.read(offset, into.subarray(0, there));
    into.fill(0, there);
  }

  /** False: there is no more to be said in this answer. */
  /** Adds what `mapping` covers from `at` on, or lets the run before grow; gives where it ends. */
  #addRun(runs: Run[], mapping: Mapping, at: number, end: number): number {
    const { map } = this.#context;
    const { grainBytes, spanBytes } = map;
    const unit = mapping.kind === 'unallocated' && !map.hasTable(at) ? spanBytes : grainBytes;
    const next = Math.min(end, (Math.floor(at / unit) + 1) * unit);
    const host = mapping.kind === 'data' ? mapping.host + (at % grainBytes) : mapping.host;
    const before = runs.at(-1);
    const joins =
      before !== undefined &&
      before.kind === mapping.kind &&
      before.copied === mapping.copied &&
      (mapping.kind === 'data'
        ? before.host + before.runBytes === host
        : mapping.kind === 'zero'
          ? (before.host === 0) === (host === 0)
          : // Compressed: the subclusters of one cluster have one place in the file.
            before.host === host);
    if (joins) before.runBytes += next - at;
    else runs.push({ ...mapping, host, at, runBytes: next - at });
    return next;
  }
}

/** May be overwritten where it is */
export function inPlace({ kind, copied }: Mapping): boolean {
  return kind === 'data' && copied;
}

function statusOf(run: Run): number {
  if (run.kind === 'unallocated') return STATE.HOLE | STATE.ZERO;
  return run.kind === 'zero' ? STATE.ZERO | (run.host === 0 ? STATE.HOLE : 0) : 0;
}
