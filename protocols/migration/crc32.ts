// CRC-32 of ISO 3309 / ITU-T V.42 (the one of zlib), reflected, polynomial 0xedb88320.

/** Continues `seed` over `bytes`; the same contract as zlib's crc32, which a platform may put in its place. */
export type Crc32 = (bytes: Uint8Array, seed?: number) => number;

const POLYNOMIAL = 0xedb8_8320;
const SLICES = 8;

/** TABLES[k * 256 + b]: effect of byte b that is followed by k zero bytes */
const TABLES = makeTables();

function makeTables(): Uint32Array {
  const tables = new Uint32Array(256 * SLICES);
  for (let byte = 0; byte < 256; byte++) {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ POLYNOMIAL : value >>> 1;
    tables[byte] = value;
  }
  for (let at = 256; at < tables.length; at++) {
    const previous = tables[at - 256]!;
    tables[at] = tables[previous & 0xff]! ^ (previous >>> 8);
  }
  return tables;
}

/** Eight bytes a step through eight tables; `seed` is the CRC of what came before. */
export function crc32(bytes: Uint8Array, seed = 0): number {
  const table = TABLES;
  let crc = ~seed;
  let at = 0;
  const whole = bytes.length - (bytes.length % 8);
  for (; at < whole; at += 8) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    crc =
      table[1792 + (crc & 0xff)]! ^
      table[1536 + ((crc >>> 8) & 0xff)]! ^
      table[1280 + ((crc >>> 16) & 0xff)]! ^
      table[1024 + (crc >>> 24)]! ^
      table[768 + bytes[at + 4]!]! ^
      table[512 + bytes[at + 5]!]! ^
      table[256 + bytes[at + 6]!]! ^
      table[bytes[at + 7]!]!;
  }
  for (; at < bytes.length; at++) crc = table[(crc ^ bytes[at]!) & 0xff]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

/**
 * Joins checksums of neighbours of one size: with `shift = crc32Shift(n)`,
 * `crc32(A ‖ B) = shift(crc32(A)) ^ crc32(B)` where B has n bytes. So one walk over a run gives the checksum of
 * each page and of the whole run. The operator is linear over GF(2): four table look-ups.
 */
export function crc32Shift(lengthBytes: number): (crc: number) => number {
  const zeroes = new Uint8Array(lengthBytes);
  // The change of a CRC by n zero bytes is affine; the difference to the CRC of zeroes alone is the linear part.
  const constant = crc32(zeroes, 0);
  const table = new Uint32Array(1024);
  for (let bit = 0; bit < 32; bit++) {
    const image = crc32(zeroes, (1 << bit) >>> 0) ^ constant;
    const lane = (bit >> 3) * 256;
    const weight = 1 << (bit & 7);
    for (let byte = 0; byte < 256; byte++) if (byte & weight) table[lane + byte]! ^= image;
  }
  return (crc) =>
    (table[crc & 0xff]! ^
      table[256 + ((crc >>> 8) & 0xff)]! ^
      table[512 + ((crc >>> 16) & 0xff)]! ^
      table[768 + (crc >>> 24)]!) >>>
    0;
}
