/**
 * Which bytes of a read's answer have come. Servers send in order, which costs one number; from the first piece that
 * comes out of order on there is a bit for each byte, so that no order of pieces costs more than their length.
 */
export class ReadCover {
  readonly #lengthBytes: number;
  /** Without bits: all up to here have come, and none behind it */
  #end = 0;
  #bits: Uint8Array | undefined;
  #count = 0;

  /** Of a request for `lengthBytes` bytes. */
  constructor(lengthBytes: number) {
    this.#lengthBytes = lengthBytes;
  }

  /** All bytes have come */
  get isWhole(): boolean {
    return this.#count === this.#lengthBytes;
  }

  /** Takes [start, end), which is inside the request. False, and nothing is taken, where one of them came before. */
  add(start: number, end: number): boolean {
    if (this.#bits === undefined) {
      if (start < this.#end) return false;
      if (start === this.#end) {
        this.#end = end;
        this.#count = end;
        return true;
      }
      this.#bits = new Uint8Array(Math.ceil(this.#lengthBytes / 8));
      fill(this.#bits, 0, this.#end);
    }
    if (this.#count + end - start > this.#lengthBytes || touches(this.#bits, start, end)) return false;
    fill(this.#bits, start, end);
    this.#count += end - start;
    return true;
  }
}

/** The bits of one byte that lie in [start, end) */
function maskOf(index: number, start: number, end: number): number {
  const from = Math.max(0, start - index * 8);
  const to = Math.min(8, end - index * 8);
  return (0xff << from) & (0xff >> (8 - to));
}

function touches(bits: Uint8Array, start: number, end: number): boolean {
  const last = Math.ceil(end / 8);
  for (let index = start >>> 3; index < last; index++) {
    if ((bits[index]! & maskOf(index, start, end)) !== 0) return true;
  }
  return false;
}

function fill(bits: Uint8Array, start: number, end: number): void {
  if (end <= start) return;
  const first = Math.ceil(start / 8);
  const last = end >>> 3;
  if (first < last) bits.fill(0xff, first, last);
  if (start % 8 !== 0) bits[start >>> 3]! |= maskOf(start >>> 3, start, end);
  if (end % 8 !== 0 && last >= first) bits[last]! |= maskOf(last, start, end);
}
