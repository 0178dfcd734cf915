import { Cursor, FrameDecoder, type FrameSize, WireError } from '../bytes/mod.ts';
import { type ControlMessage, decodeControl } from './control.ts';
import { MAX_CONTROL_BYTES } from './limits.ts';
import { decodeRecordHeader, MAX_RECORD_BYTES, RECORD_HEADER_BYTES, RECORD_MAGIC } from './record.ts';

/** One frame of the stream: a control message, or a record whose checksum is not checked yet. */
export type MigrationFrame =
  | { readonly kind: 'control'; readonly message: ControlMessage }
  | { readonly kind: 'record'; readonly bytes: Uint8Array };

const LENGTH_BYTES = 4;

function frameSize(head: Uint8Array): FrameSize {
  if (head.length < LENGTH_BYTES) return { need: LENGTH_BYTES };
  const first = new Cursor(head, 'migration frame').u32le('length');
  if (first === RECORD_MAGIC) {
    if (head.length < RECORD_HEADER_BYTES) return { need: RECORD_HEADER_BYTES };
    return { bytes: RECORD_HEADER_BYTES + decodeRecordHeader(head).payloadBytes };
  }
  if (first < 1 || first > MAX_CONTROL_BYTES) {
    throw new WireError(
      'ERR_WIRE_LIMIT',
      `Cannot accept a migration frame: length ${first}, expected 1..${MAX_CONTROL_BYTES} or a record`,
      { message: 'migration frame' },
    );
  }
  return { bytes: LENGTH_BYTES + first };
}

/** Cuts a migration stream into frames, for any split of it. */
export class MigrationFrames {
  readonly #decoder = new FrameDecoder({
    name: 'migration stream',
    frameSize,
    maxFrameBytes: MAX_RECORD_BYTES,
    maxBufferedBytes: MAX_RECORD_BYTES * 2,
  });

  /** Waiting, in `bytes` */
  get buffered(): number {
    return this.#decoder.buffered;
  }

  push(chunk: Uint8Array): void {
    this.#decoder.push(chunk);
  }

  /** @throws WireError */
  next(): MigrationFrame | undefined {
    const frame = this.#decoder.next();
    if (frame === undefined) return undefined;
    if (new Cursor(frame, 'migration frame').u32le('length') === RECORD_MAGIC) return { kind: 'record', bytes: frame };
    return { kind: 'control', message: decodeControl(frame.subarray(LENGTH_BYTES)) };
  }
}
