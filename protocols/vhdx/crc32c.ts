const POLYNOMIAL = 0x82f6_3b78;

const table = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = (value & 1) === 0 ? value >>> 1 : (value >>> 1) ^ POLYNOMIAL;
  return value >>> 0;
});

/** CRC-32C of `bytes`, with the four bytes at `skipAt` taken as zeroes: where the checksum itself is. */
export function crc32c(bytes: Uint8Array, skipAt?: number): number {
  if (skipAt === undefined) return ~update(0xffff_ffff, bytes) >>> 0;
  let crc = update(0xffff_ffff, bytes.subarray(0, skipAt));
  crc = update(crc, new Uint8Array(4).subarray(0, Math.max(0, bytes.length - skipAt)));
  return ~update(crc, bytes.subarray(skipAt + 4)) >>> 0;
}

function update(start: number, bytes: Uint8Array): number {
  let crc = start;
  for (let index = 0; index < bytes.length; index++) crc = (crc >>> 8) ^ table[(crc ^ bytes[index]!) & 0xff]!;
  return crc;
}
