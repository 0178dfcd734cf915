import { type CheckedRequest, CMD, changesExport } from '../../protocols/nbd/mod.ts';

interface Entry {
  readonly offset: number;
  readonly end: number;
  readonly writes: boolean;
  /** Its place in the list */
  index: number;
}

/** The requests of one session that are worked on, by the part of the disk that they touch. */
export class InFlight {
  /** In no order: a set that changes with each request makes itself anew again and again */
  readonly #entries: Entry[] = [];
  readonly #limits: { readonly requests: number; readonly requestBytes: number };
  #bytes = 0;

  constructor(limits: { readonly requests: number; readonly requestBytes: number }) {
    this.#limits = limits;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** Data that they hold, in `bytes` */
  get bytes(): number {
    return this.#bytes;
  }

  /** Within the budget, and not overlapping another one unless both only read: replies then tell the truth. */
  admits(request: CheckedRequest): boolean {
    if (this.#entries.length === 0) return true;
    if (this.#entries.length >= this.#limits.requests) return false;
    if (this.#bytes + memoryOf(request) > this.#limits.requestBytes) return false;
    const { offset, end, writes } = entryOf(request);
    for (const other of this.#entries) {
      if ((writes || other.writes) && offset < other.end && other.offset < end) return false;
    }
    return true;
  }

  /** Gives the function that takes the request out again. */
  enter(request: CheckedRequest): () => void {
    const entry = entryOf(request);
    const bytes = memoryOf(request);
    entry.index = this.#entries.push(entry) - 1;
    this.#bytes += bytes;
    return () => {
      const last = this.#entries.pop()!;
      if (last !== entry) {
        last.index = entry.index;
        this.#entries[last.index] = last;
      }
      this.#bytes -= bytes;
    };
  }
}

/** All of the disk for RESIZE, whose offset is a size. */
function entryOf(request: CheckedRequest): Entry {
  const { type, offset, length } = request;
  if (type === CMD.RESIZE) return { offset: 0, end: Number.POSITIVE_INFINITY, writes: true, index: -1 };
  return { offset, end: offset + length, writes: changesExport(type), index: -1 };
}

/** Memory that a request holds while it runs, in `bytes`; the length of a WRITE_ZEROES says nothing about that. */
function memoryOf(request: CheckedRequest): number {
  return request.type === CMD.READ || request.type === CMD.WRITE ? request.length : 0;
}
