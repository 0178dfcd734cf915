/** One PT_LOAD of a made-up executable. */
export interface SampleSegment {
  readonly physical: number;
  readonly virtual?: bigint;
  readonly bytes: Uint8Array;
  readonly memoryBytes?: number;
}

/** A small RISC-V ELF-64; wrong ones are made by writing over its fields. */
export function sampleElf(segments: readonly SampleSegment[], entry?: bigint): Uint8Array<ArrayBuffer> {
  const headers = 64 + 56 * segments.length;
  const file = new Uint8Array(headers + segments.reduce((sum, { bytes }) => sum + bytes.length, 0));
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 243, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, entry ?? BigInt(segments[0]?.physical ?? 0), true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, segments.length, true);
  let at = headers;
  for (const [index, segment] of segments.entries()) {
    const header = 64 + 56 * index;
    view.setUint32(header, 1, true);
    view.setUint32(header + 4, 5, true);
    view.setBigUint64(header + 8, BigInt(at), true);
    view.setBigUint64(header + 16, segment.virtual ?? BigInt(segment.physical), true);
    view.setBigUint64(header + 24, BigInt(segment.physical), true);
    view.setBigUint64(header + 32, BigInt(segment.bytes.length), true);
    view.setBigUint64(header + 40, BigInt(segment.memoryBytes ?? segment.bytes.length), true);
    file.set(segment.bytes, at);
    at += segment.bytes.length;
  }
  return file;
}

/** A kernel Image with a true header. */
export function sampleImage(bytes = 4096, imageBytes = bytes * 4): Uint8Array<ArrayBuffer> {
  const file = new Uint8Array(bytes);
  const view = new DataView(file.buffer);
  view.setUint32(0, 0x0000_006f, true);
  view.setBigUint64(8, 0x20_0000n, true);
  view.setBigUint64(16, BigInt(imageBytes), true);
  view.setUint32(32, 2, true);
  file.set(new TextEncoder().encode('RISCV'), 48);
  view.setUint32(56, 0x0543_5352, true);
  return file;
}
