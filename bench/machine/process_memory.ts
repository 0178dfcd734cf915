import { closeSync, openSync, readFileSync, readSync } from 'node:fs';

const PAGE_BYTES = 4096;
/** Of an entry in `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst): bit 63, page present */
const PRESENT = 0x80;
const ENTRY_BYTES = 8;

export interface Mapping {
  readonly start: number;
  readonly end: number;
  readonly permissions: string;
}

/** `/proc/PID/maps` */
export function parseMaps(text: string): Mapping[] {
  return [...text.matchAll(/^([0-9a-f]+)-([0-9a-f]+) (\S{4}) /gm)].map(([, start, end, permissions]) => ({
    start: Number.parseInt(start!, 16),
    end: Number.parseInt(end!, 16),
    permissions: permissions!,
  }));
}

/** Resident size out of `/proc/PID/status`, in `bytes`. */
export function parseResidentBytes(status: string): number {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1];
  if (kib === undefined) throw new Error('Cannot read VmRSS: there is no such line');
  return Number(kib) * 1024;
}

/** How many of these page table entries are of a page in memory. */
export function countPresent(entries: Uint8Array): number {
  let count = 0;
  for (let at = ENTRY_BYTES - 1; at < entries.length; at += ENTRY_BYTES) if ((entries[at]! & PRESENT) !== 0) count++;
  return count;
}

/**
 * The writable mapping that holds guest RAM: the smallest that can. Neighbours with the same permissions count as one
 * mapping, as the kernel may have split it.
 */
export function findRamMapping(mappings: readonly Mapping[], atLeastBytes: number): Mapping | undefined {
  const merged: Mapping[] = [];
  for (const mapping of mappings) {
    const last = merged.at(-1);
    if (last !== undefined && last.end === mapping.start && last.permissions === mapping.permissions) {
      merged[merged.length - 1] = { ...last, end: mapping.end };
    } else merged.push(mapping);
  }
  return merged
    .filter(({ start, end, permissions }) => permissions.startsWith('rw') && end - start >= atLeastBytes)
    .sort((a, b) => a.end - a.start - (b.end - b.start))[0];
}

export interface ProcessMemory {
  readonly residentBytes: number;
  /** Guest RAM that is resident */
  readonly ramBytes: number;
  /** The rest: the emulator itself, what it made of the guest's code, its tables */
  readonly otherBytes: number;
}

/**
 * Resident size of a process, and how much of it is guest RAM: `ramBytes` at `ramOffset` of the mapping that holds at
 * least `ramOffset + ramBytes`.
 */
export function readProcessMemory(pid: number, ramBytes: number, ramOffset: number): ProcessMemory {
  const mapping = findRamMapping(parseMaps(readFileSync(`/proc/${pid}/maps`, 'latin1')), ramOffset + ramBytes);
  if (mapping === undefined) throw new Error(`Cannot find ${ramBytes} bytes of guest RAM in process ${pid}`);
  const entries = new Uint8Array((ramBytes / PAGE_BYTES) * ENTRY_BYTES);
  const pagemap = openSync(`/proc/${pid}/pagemap`, 'r');
  try {
    const from = ((mapping.start + ramOffset) / PAGE_BYTES) * ENTRY_BYTES;
    for (let at = 0; at < entries.length; ) {
      const count = readSync(pagemap, entries, at, entries.length - at, from + at);
      if (count === 0) throw new Error(`Cannot read the page map of process ${pid}: it ends early`);
      at += count;
    }
  } finally {
    closeSync(pagemap);
  }
  const residentBytes = parseResidentBytes(readFileSync(`/proc/${pid}/status`, 'latin1'));
  const resident = countPresent(entries) * PAGE_BYTES;
  return { residentBytes, ramBytes: resident, otherBytes: residentBytes - resident };
}
