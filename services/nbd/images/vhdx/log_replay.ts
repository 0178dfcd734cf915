import {
  decodeVhdxLogEntry,
  isWholeVhdxLogEntry,
  NO_GUID,
  peekVhdxLogEntry,
  VHDX_LIMITS,
  VHDX_LOG_SECTOR_BYTES,
  type VhdxHeader,
  type VhdxLogEntryHeader,
} from '../../../../protocols/vhdx/mod.ts';
import { ImageError } from '../disk_image.ts';
import { type ImageFile, ImageFileOver } from '../qcow2/image_file.ts';

interface FoundEntry {
  readonly at: number;
  readonly header: VhdxLogEntryHeader;
  readonly bytes: Uint8Array;
}

/**
 * The file as it is once its log is replayed, and how many entries that took. The file itself stays as it is: what the
 * log says is laid over it in memory. Without anything to replay it is `file` itself.
 * @throws WireError, ImageError where the log is wrong
 */
export async function replayLog(file: ImageFile, header: VhdxHeader): Promise<{ file: ImageFile; entries: number }> {
  const { logGuid, logOffset, logBytes } = header;
  if (logGuid === NO_GUID || logBytes === 0) return { file, entries: 0 };
  if (logOffset + logBytes > file.sizeBytes) throw bad(`the log at ${logOffset} is behind the end of the file`);
  const log = new Uint8Array(logBytes);
  await file.read(logOffset, log);
  const sequence = activeSequence(log, logGuid);
  if (sequence.length === 0) return { file, entries: 0 };

  const head = sequence.at(-1)!.header;
  if (head.flushedFileBytes > file.sizeBytes) {
    throw bad(`its log is of a file of ${head.flushedFileBytes} bytes, this one has ${file.sizeBytes}: it was cut off`);
  }
  const sizeBytes = Math.max(file.sizeBytes, head.lastFileBytes);
  const pages = new Map<number, Uint8Array | undefined>();
  let zeroed = 0;
  for (const entry of sequence) {
    for (const change of decodeVhdxLogEntry(entry.bytes, entry.header)) {
      const length = change.kind === 'zero' ? change.lengthBytes : VHDX_LOG_SECTOR_BYTES;
      if (change.offset + length > sizeBytes) throw bad(`its log changes ${change.offset}, behind the end of the file`);
      if (change.offset < logOffset + logBytes && change.offset + length > logOffset) {
        throw bad(`its log changes ${change.offset}, in the log itself`);
      }
      const first = change.offset / VHDX_LOG_SECTOR_BYTES;
      if (change.kind === 'data') {
        pages.set(first, change.bytes);
        continue;
      }
      zeroed += length;
      if (zeroed > VHDX_LIMITS.logZeroBytes) {
        throw bad(
          `its log zeroes more than ${VHDX_LIMITS.logZeroBytes} bytes; replay it with the program that wrote it`,
        );
      }
      for (let page = first; page < first + length / VHDX_LOG_SECTOR_BYTES; page++) pages.set(page, undefined);
    }
  }
  return { file: new ReplayedFile(file, pages, sizeBytes), entries: sequence.length };
}

/**
 * MS-VHDX 2.3.2: entries that follow each other, of which the last names as its tail one of them. Of several such
 * sequences the one with the greatest number counts. What is in front of the tail has been replayed before.
 */
function activeSequence(log: Uint8Array, logGuid: string): FoundEntry[] {
  let best: FoundEntry[] = [];
  let checked = 0;
  const entryAt = (at: number): FoundEntry | undefined => {
    const start = log.subarray(at, at + 64);
    const header = peekVhdxLogEntry(start, log.length);
    if (header === undefined || header.logGuid !== logGuid) return undefined;
    checked += header.entryBytes;
    if (checked > VHDX_LIMITS.logChecksumBytes) throw bad('its log is a tangle of entries');
    const bytes = circular(log, at, header.entryBytes);
    return isWholeVhdxLogEntry(bytes, header) ? { at, header, bytes } : undefined;
  };
  for (let start = 0; start < log.length; ) {
    const sequence: FoundEntry[] = [];
    let lengthBytes = 0;
    for (let entry = entryAt(start); entry !== undefined; ) {
      if (lengthBytes + entry.header.entryBytes > log.length) break;
      sequence.push(entry);
      lengthBytes += entry.header.entryBytes;
      const next = entryAt((start + lengthBytes) % log.length);
      entry = next?.header.sequence === entry.header.sequence + 1n ? next : undefined;
    }
    const head = sequence.at(-1);
    if (head === undefined) {
      start += VHDX_LOG_SECTOR_BYTES;
      continue;
    }
    const tail = sequence.findIndex((entry) => entry.at === head.header.tail);
    const newest = best.at(-1)?.header.sequence ?? 0n;
    if (tail >= 0 && head.header.sequence > newest) best = sequence.slice(tail);
    start += lengthBytes;
  }
  return best;
}

/** The log is a ring: an entry may go on at its start. */
function circular(log: Uint8Array, at: number, lengthBytes: number): Uint8Array {
  if (at + lengthBytes <= log.length) return log.subarray(at, at + lengthBytes);
  const bytes = new Uint8Array(lengthBytes);
  const first = log.subarray(at);
  bytes.set(first);
  bytes.set(log.subarray(0, lengthBytes - first.length), first.length);
  return bytes;
}

/** A file under the changes of its log. Only read. */
class ReplayedFile extends ImageFileOver {
  readonly sizeBytes: number;
  /** Sectors of 4096 bytes by number; undefined: zeroes */
  readonly #pages: ReadonlyMap<number, Uint8Array | undefined>;

  constructor(file: ImageFile, pages: ReadonlyMap<number, Uint8Array | undefined>, sizeBytes: number) {
    super(file);
    this.#pages = pages;
    this.sizeBytes = sizeBytes;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.file.read(offset, into);
    this.#overlay(offset, into);
  }

  readNow(offset: number, into: Uint8Array): void {
    this.file.readNow(offset, into);
    this.#overlay(offset, into);
  }

  write(): Promise<void> {
    return Promise.reject(
      new ImageError('EPERM', 'Cannot write: the log of the VHDX image was replayed in memory only'),
    );
  }

  writeNow(): void {
    throw new ImageError('EPERM', 'Cannot write: the log of the VHDX image was replayed in memory only');
  }

  #overlay(offset: number, into: Uint8Array): void {
    const end = offset + into.length;
    for (let page = Math.floor(offset / VHDX_LOG_SECTOR_BYTES); page * VHDX_LOG_SECTOR_BYTES < end; page++) {
      if (!this.#pages.has(page)) continue;
      const from = Math.max(offset, page * VHDX_LOG_SECTOR_BYTES);
      const to = Math.min(end, (page + 1) * VHDX_LOG_SECTOR_BYTES);
      const bytes = this.#pages.get(page);
      const skip = from - page * VHDX_LOG_SECTOR_BYTES;
      if (bytes === undefined) into.fill(0, from - offset, to - offset);
      else into.set(bytes.subarray(skip, skip + to - from), from - offset);
    }
  }
}

export function bad(why: string): ImageError {
  return new ImageError('EINVAL', `Cannot open the VHDX image: ${why}`);
}
