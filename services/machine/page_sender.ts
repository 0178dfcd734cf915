import { crc32 } from 'node:zlib';
import { DIRTY_MIGRATION, type MachineApi } from '../../emulator/machine/machine_api.ts';
import {
  encodeRecordHeader,
  LinkFrame,
  MAX_ZERO_PAGES,
  PAGE_BYTES,
  type PassTotals,
  RecordKind,
} from '../../protocols/migration/mod.ts';
import type { Channel } from '../shared/channel.ts';
import { isZeroPage, PageTable, shiftPage, ZERO_PAGE_CRC } from './page_table.ts';

/** Copied and sent at a time, in pages: 256 KiB */
const RUN_PAGES = 64;
/** Pages between two looks at the dirty map: a page stored to just before its turn is then sent once */
const HARVEST_PAGES = 2048;
/** Waiting in our end of the link before we wait for it, in `bytes` */
const QUEUE_BYTES = 1 << 20;
/** Others on this thread (harts in embedded mode, requests) get their turn after this */
const SLICE_MS = 3;

/**
 * Sends the pages of a machine that runs: which pages wait, their order, their checksums. Each run is copied
 * before it is tested, checked and sent, because the guest stores meanwhile. The dirty mark is cleared before the
 * copy, so a store that comes between is seen again in the next pass.
 */
export class PageSender {
  readonly #machine: MachineApi;
  readonly #channel: Channel;
  readonly #pages: number;
  /** 1 for each page that must be sent again */
  readonly #waiting: Uint8Array;
  readonly table: PageTable;
  #waitingCount = 0;
  #sequence = 0;
  #stopped = false;

  constructor(machine: MachineApi, channel: Channel) {
    this.#machine = machine;
    this.#channel = channel;
    this.#pages = machine.ramBytes / PAGE_BYTES;
    this.#waiting = new Uint8Array(this.#pages);
    this.table = new PageTable(this.#pages);
    machine.markAllDirty(DIRTY_MIGRATION);
  }

  /** Collects all dirty marks; pages that wait then. */
  collect(): number {
    for (let from = 0; from < this.#pages; ) from = this.#harvest(from, 65_536);
    return this.#waitingCount;
  }

  /** Ends the pass that runs, after the run that is being copied. */
  stop(): void {
    this.#stopped = true;
  }

  /** Sends what waits, in ascending order, each page once. */
  async pass(pass: number): Promise<PassTotals> {
    this.#stopped = false;
    const run = new RunWriter(this.#channel, this.table, pass, this.#sequence);
    let sliceEnd = performance.now() + SLICE_MS;
    let position = 0;
    while (position < this.#pages && !this.#stopped) {
      const covered = this.#harvest(position, HARVEST_PAGES);
      const end = Math.min(covered, position + HARVEST_PAGES * 4);
      while (!this.#stopped) {
        const first = this.#waiting.indexOf(1, position);
        if (first < 0 || first >= end) break;
        let count = 1;
        while (count < RUN_PAGES && first + count < end && this.#waiting[first + count] === 1) count++;
        this.#waiting.fill(0, first, first + count);
        this.#waitingCount -= count;
        run.send(first, this.#copy(first, count), count);
        position = first + count;
        if (this.#channel.stream.writableLength > QUEUE_BYTES) {
          await this.#channel.drained();
          sliceEnd = performance.now() + SLICE_MS;
        } else if (performance.now() > sliceEnd) {
          await new Promise((resolve) => setImmediate(resolve));
          sliceEnd = performance.now() + SLICE_MS;
        }
        if (this.#channel.closed) this.#stopped = true;
      }
      position = end;
    }
    run.flush();
    this.#sequence = run.sequence;
    return run.totals;
  }

  /** Marks collected from `from` on; gives the first page that was not looked at. */
  #harvest(from: number, maxPages: number): number {
    const dirty = this.#machine.harvestDirty(DIRTY_MIGRATION, from, maxPages);
    for (const page of dirty) {
      if (this.#waiting[page] === 0) {
        this.#waiting[page] = 1;
        this.#waitingCount++;
      }
    }
    return dirty.length < maxPages ? this.#pages : dirty[dirty.length - 1]! + 1;
  }

  /** A private copy of live pages. */
  #copy(first: number, count: number): Buffer {
    const copy = Buffer.allocUnsafeSlow(count * PAGE_BYTES);
    copy.set(this.#machine.ram(first * PAGE_BYTES, count * PAGE_BYTES));
    return copy;
  }
}

/** Cuts copies into records: neighbours that are zero become one record without bytes. */
class RunWriter {
  readonly #channel: Channel;
  readonly #table: PageTable;
  readonly #pass: number;
  #zeroFirst = 0;
  #zeroCount = 0;
  #records = 0;
  #pages = 0;
  #zeroPages = 0;
  sequence: number;

  constructor(channel: Channel, table: PageTable, pass: number, sequence: number) {
    this.#channel = channel;
    this.#table = table;
    this.#pass = pass;
    this.sequence = sequence;
  }

  get totals(): PassTotals {
    return { records: this.#records, pages: this.#pages, zeroPages: this.#zeroPages };
  }

  send(first: number, copy: Buffer, count: number): void {
    let rawFrom = 0;
    for (let i = 0; i <= count; i++) {
      if (i < count && !isZeroPage(copy, i * PAGE_BYTES)) continue;
      if (i > rawFrom) this.#raw(first + rawFrom, copy.subarray(rawFrom * PAGE_BYTES, i * PAGE_BYTES), i - rawFrom);
      if (i < count) this.#zero(first + i);
      rawFrom = i + 1;
    }
  }

  flush(): void {
    if (this.#zeroCount === 0) return;
    this.#table.fill(ZERO_PAGE_CRC, this.#zeroFirst, this.#zeroCount);
    this.#zeroPages += this.#zeroCount;
    this.#record(RecordKind.zero, this.#zeroFirst, this.#zeroCount, undefined, (seed) => seed);
    this.#zeroCount = 0;
  }

  #zero(page: number): void {
    if (this.#zeroCount > 0 && (page !== this.#zeroFirst + this.#zeroCount || this.#zeroCount === MAX_ZERO_PAGES)) {
      this.flush();
    }
    if (this.#zeroCount === 0) this.#zeroFirst = page;
    this.#zeroCount++;
  }

  #raw(first: number, payload: Buffer, count: number): void {
    this.flush();
    const crcs = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      crcs[i] = crc32(payload.subarray(i * PAGE_BYTES, (i + 1) * PAGE_BYTES));
      this.#table.set(first + i, crcs[i]!);
    }
    this.#record(
      RecordKind.raw,
      first,
      count,
      payload,
      (seed) => crcs.reduce((crc, page) => shiftPage(crc) ^ page, seed) >>> 0,
    );
  }

  #record(
    kind: RecordKind,
    firstPage: number,
    pageCount: number,
    payload: Buffer | undefined,
    crcOver: (seed: number) => number,
  ): void {
    const header = encodeRecordHeader(
      { kind, block: 0, pass: this.#pass, firstPage, pageCount, sequence: this.sequence },
      crcOver,
    );
    if (payload === undefined) this.#channel.send(LinkFrame.record, header);
    else this.#channel.send(LinkFrame.record, header, payload);
    this.sequence = (this.sequence + 1) >>> 0;
    this.#records++;
    this.#pages += pageCount;
  }
}
