import { Cursor, FrameDecoder, WireError } from '../bytes/mod.ts';
import { decodeReplayHeader, type ReplayHeader } from './header.ts';
import { MAX_BODY_BYTES } from './limits.ts';
import { decodeReplayRecord, type ReplayRecord } from './record.ts';

const LENGTH_BYTES = 4;

/**
 * Reads a recording piece by piece. Rounds never fall, and nothing comes after the end record. The file is not
 * trusted: it may come from somebody else.
 */
export class ReplayDecoder {
  readonly #frames = new FrameDecoder({
    name: 'recording',
    frameSize: (head) => {
      if (head.length < LENGTH_BYTES) return { need: LENGTH_BYTES };
      return { bytes: LENGTH_BYTES + new Cursor(head, 'recording').u32('length') };
    },
    maxFrameBytes: LENGTH_BYTES + MAX_BODY_BYTES,
  });
  #header: ReplayHeader | undefined;
  #round = 0;
  #ended = false;

  push(chunk: Uint8Array): void {
    this.#frames.push(chunk);
  }

  /** The header, or undefined until its bytes are there. @throws WireError */
  header(): ReplayHeader | undefined {
    if (this.#header === undefined) {
      const body = this.#body();
      if (body !== undefined) this.#header = decodeReplayHeader(body);
    }
    return this.#header;
  }

  /** The next record, or undefined until more bytes are there; after {@link header}. @throws WireError */
  next(): ReplayRecord | undefined {
    if (this.header() === undefined) return undefined;
    const body = this.#body();
    if (body === undefined) return undefined;
    if (this.#ended) throw refuse('ERR_WIRE_TRAILING', 'a record after the end');
    const record = decodeReplayRecord(body);
    if (record.round < this.#round) throw refuse('ERR_WIRE_VALUE', `round ${record.round} after ${this.#round}`);
    this.#round = record.round;
    this.#ended = record.kind === 'end';
    return record;
  }

  /** Call where the file ends. @throws WireError where it was cut off */
  end(): void {
    if (!this.#ended || this.#frames.buffered > 0) throw refuse('ERR_WIRE_TRUNCATED', 'it was cut off');
  }

  #body(): Uint8Array | undefined {
    const frame = this.#frames.next();
    if (frame === undefined) return undefined;
    const cursor = new Cursor(frame, 'recording');
    cursor.skip(LENGTH_BYTES, 'length');
    return cursor.rest();
  }
}

function refuse(code: ConstructorParameters<typeof WireError>[0], found: string): WireError {
  return new WireError(code, `Cannot accept the recording: ${found}`, { message: 'recording' });
}
