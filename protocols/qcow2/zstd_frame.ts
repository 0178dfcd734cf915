const MAGIC = 0xfd2fb528;

/**
 * The length of the zstd frame (RFC 8878 §3.1.1) that starts at `start`, or undefined where there is none or it is cut
 * off. Behind the frame of a compressed cluster follow other clusters, which its decoder must not see.
 */
export function zstdFrameBytes(bytes: Uint8Array, start = 0): number | undefined {
  if (start + 5 > bytes.length) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(start, true) !== MAGIC) return undefined;
  const descriptor = view.getUint8(start + 4);
  const single = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >> 6;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  const sizeBytes = sizeFlag === 0 ? (single ? 1 : 0) : 1 << sizeFlag;
  let at = start + 5 + (single ? 0 : 1) + dictionaryBytes + sizeBytes;
  for (;;) {
    if (at + 3 > bytes.length) return undefined;
    const block = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    // Type 1 is one byte repeated: its size counts what comes out.
    at += 3 + (((block >> 1) & 3) === 1 ? 1 : block >> 3);
    if ((block & 1) === 1) break;
  }
  if ((descriptor & 4) !== 0) at += 4;
  return at <= bytes.length ? at - start : undefined;
}
