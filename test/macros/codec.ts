import type { ExecutionContext } from 'ava';
import { WireError } from '../../protocols/bytes/mod.ts';

/** Anything that a decoder throws but WireError is a defect. */
function valueOrWireError<T>(t: ExecutionContext, what: string, decode: () => T): T | undefined {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof WireError)) t.fail(`${what}: threw ${String(error)}`);
    return undefined;
  }
}

/** Every proper prefix of a valid message is refused with WireError, never accepted, never another exception. */
export function refusesEveryTruncation(
  t: ExecutionContext,
  message: Uint8Array,
  decode: (bytes: Uint8Array) => unknown,
): void {
  for (let length = 0; length < message.length; length++) {
    const error = t.throws(() => decode(message.slice(0, length)), { instanceOf: WireError }, `cut at ${length}`);
    if (error === undefined) return;
  }
  t.pass();
}

/** Every single-byte change gives a value or a WireError. */
export function survivesEveryByteChange(
  t: ExecutionContext,
  message: Uint8Array,
  decode: (bytes: Uint8Array) => unknown,
): void {
  for (let index = 0; index < message.length; index++) {
    for (const delta of [0x01, 0x80, 0xff, 0x7f]) {
      const changed = message.slice();
      changed[index] = changed[index]! ^ delta;
      valueOrWireError(t, `byte ${index} ^ ${delta}`, () => decode(changed));
    }
  }
  t.pass();
}

/** `encode(decode(bytes))` gives the same bytes, and `decode(encode(value))` the same value. */
export function roundTrips<T>(
  t: ExecutionContext,
  value: T,
  encode: (value: T) => Uint8Array,
  decode: (bytes: Uint8Array) => T,
): void {
  const bytes = encode(value);
  t.deepEqual(decode(bytes), value);
  t.deepEqual([...encode(decode(bytes))], [...bytes]);
}

/**
 * Feeds a stream whole, byte by byte, and at every single split point, and expects the same transcript.
 * `run` gets the chunks and gives anything comparable.
 */
export function sameForAnySplit<T>(t: ExecutionContext, stream: Uint8Array, run: (chunks: Uint8Array[]) => T): void {
  const whole = run([stream]);
  t.deepEqual(run([...stream].map((byte) => Uint8Array.of(byte))), whole, 'byte by byte');
  for (let at = 1; at < stream.length; at++) {
    t.deepEqual(run([stream.slice(0, at), stream.slice(at)]), whole, `split at ${at}`);
  }
}
