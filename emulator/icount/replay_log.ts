import { WireError } from '../../protocols/bytes/mod.ts';
import {
  encodeReplayHeader,
  encodeReplayRecord,
  ReplayDecoder,
  type ReplayHeader,
  type ReplayRecord,
} from '../../protocols/replay/mod.ts';
import { ReplayError } from './replay_error.ts';

/** Where a recording goes, or comes from; the platform's. */
export type ReplayFile =
  | { readonly mode: 'record'; write(bytes: Uint8Array): void }
  /** Some next bytes; undefined at the end of the file */
  | { readonly mode: 'replay'; read(): Uint8Array | undefined };

/** What came in: written down, read back, or neither. */
export class ReplayLog {
  readonly #file: ReplayFile | undefined;
  readonly #decoder = new ReplayDecoder();
  #next: ReplayRecord | undefined;

  constructor(file: ReplayFile | undefined) {
    this.#file = file;
  }

  get mode(): 'off' | 'record' | 'replay' {
    return this.#file?.mode ?? 'off';
  }

  /** First thing of a recording. */
  writeHeader(header: ReplayHeader): void {
    if (this.#file?.mode === 'record') this.#file.write(encodeReplayHeader(header));
  }

  /** First thing of a replay. @throws ReplayError */
  readHeader(): ReplayHeader {
    try {
      for (;;) {
        const header = this.#decoder.header();
        if (header !== undefined) return header;
        if (!this.#more()) throw new ReplayError('Cannot replay: the recording has no header');
      }
    } catch (cause) {
      if (!(cause instanceof WireError)) throw cause;
      // Whoever mistook the file would not know what a frame is.
      throw new ReplayError(`Cannot replay: rrfile= is no recording of this version (${cause.message})`, { cause });
    }
  }

  record(record: ReplayRecord): void {
    if (this.#file?.mode === 'record') this.#file.write(encodeReplayRecord(record));
  }

  /** The next record of a replay; undefined after the last. @throws WireError */
  peek(): ReplayRecord | undefined {
    if (this.#file?.mode !== 'replay') return undefined;
    while (this.#next === undefined) {
      this.#next = this.#decoder.next();
      if (this.#next === undefined && !this.#more()) return undefined;
    }
    return this.#next;
  }

  /** Takes the next record, which must be of this kind. @throws ReplayError where the run has gone another way */
  take<K extends ReplayRecord['kind']>(kind: K, round: number): ReplayRecord & { readonly kind: K } {
    const record = this.peek();
    if (record === undefined || record.kind !== kind || record.round !== round) {
      const found = record === undefined ? 'nothing' : `${record.kind} in round ${record.round}`;
      throw new ReplayError(`Cannot replay: the guest is at ${kind} in round ${round}, the recording has ${found}`);
    }
    this.#next = undefined;
    return record as ReplayRecord & { readonly kind: K };
  }

  #more(): boolean {
    if (this.#file?.mode !== 'replay') return false;
    const chunk = this.#file.read();
    if (chunk === undefined) return false;
    this.#decoder.push(chunk);
    return true;
  }
}
