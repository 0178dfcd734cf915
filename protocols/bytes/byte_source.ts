import { WireError } from './wire_error.ts';

/** Bytes that are fetched when they are wanted: of a file, or in memory. */
export interface ByteSource {
  /** In `bytes` */
  readonly length: number;
  /** Fills `into` with what begins at `offset`; nobody asks for anything beyond `length`. Throws where it cannot. */
  read(offset: number, into: Uint8Array): void;
}

/** What is in memory already. */
export function byteSource(bytes: Uint8Array): ByteSource {
  return { length: bytes.length, read: (offset, into) => into.set(bytes.subarray(offset, offset + into.length)) };
}

/**
 * A part of another source.
 * @throws WireError where that does not have it
 */
export function partOf(source: ByteSource, start: number, length: number): ByteSource {
  checkPart(source, start, length, 'part');
  return { length, read: (offset, into) => source.read(start + offset, into) };
}

/**
 * A copy of a part; `what` names it in messages.
 * @throws WireError where the source does not have it; nothing is allocated then
 */
export function readPart(source: ByteSource, offset: number, length: number, what: string): Uint8Array<ArrayBuffer> {
  checkPart(source, offset, length, what);
  const bytes = new Uint8Array(length);
  source.read(offset, bytes);
  return bytes;
}

/** A copy of the first bytes, or of all where there are fewer. */
export function readHead(source: ByteSource, atMost: number): Uint8Array<ArrayBuffer> {
  return readPart(source, 0, Math.min(atMost, source.length), 'head');
}

export function readAll(source: ByteSource): Uint8Array<ArrayBuffer> {
  return readPart(source, 0, source.length, 'file');
}

function checkPart(source: ByteSource, offset: number, length: number, what: string): void {
  if (offset >= 0 && length >= 0 && offset <= source.length && length <= source.length - offset) return;
  throw new WireError(
    'ERR_WIRE_TRUNCATED',
    `Cannot read ${what}: ${length} bytes at ${offset}, there are ${source.length}`,
    { message: what, offset },
  );
}
