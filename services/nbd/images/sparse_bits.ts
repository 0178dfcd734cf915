/** Bits are held in pieces of this size, in `bytes` */
const CHUNK_BYTES = 65_536;
const PER_CHUNK = CHUNK_BYTES * 8;
/** Bits take no more memory than this, in `bytes` */
export const MAX_HELD_BYTES = 32 << 20;

/** Stands for a piece whose bits are all set, and is never written */
const FULL = new Uint8Array(CHUNK_BYTES).fill(0xff);

/**
 * Many bits, of which pieces that are all alike take no memory. Where the others would take more than
 * {@link MAX_HELD_BYTES}, a piece in which one bit is to be set has all of them set: for bits that say what may have
 * changed that costs work, and nothing else.
 */
export class SparseBits {
  readonly count: number;
  /** Undefined: no bit is set. Others are as long as what they hold */
  readonly #chunks: (Uint8Array | undefined)[] = [];
  #heldBytes = 0;

  constructor(count: number) {
    this.count = count;
  }

  /** In whole bytes, the last of which may have bits that stand for nothing */
  get lengthBytes(): number {
    return Math.ceil(this.count / 8);
  }

  /** How many are set */
  get total(): number {
    let total = 0;
    for (const [index, chunk] of this.#chunks.entries()) {
      if (chunk === FULL) total += Math.min(PER_CHUNK, this.count - index * PER_CHUNK);
      else if (chunk !== undefined) {
        for (const byte of chunk) for (let rest = byte; rest !== 0; rest &= rest - 1) total++;
      }
    }
    return total;
  }

  has(index: number): boolean {
    const chunk = this.#chunks[Math.floor(index / PER_CHUNK)];
    return chunk !== undefined && ((chunk[(index % PER_CHUNK) >> 3] ?? 0) >> (index & 7)) % 2 === 1;
  }

  /** The first bit from `from` on that is `set`, or `before`, which is not looked at (default: {@link count}). */
  find(from: number, set: boolean, before = this.count): number {
    const passed = set ? 0 : 0xff;
    for (let at = from; at < before; ) {
      const index = Math.floor(at / PER_CHUNK);
      const base = index * PER_CHUNK;
      const end = Math.min(before, base + PER_CHUNK);
      const chunk = this.#chunks[index];
      if (chunk === undefined || chunk === FULL) {
        if ((chunk === FULL) === set) return at;
        at = end;
        continue;
      }
      while (at < end) {
        const byte = chunk[(at - base) >> 3]!;
        if (byte === passed) at += 8 - (at & 7);
        else if ((byte >> (at & 7)) % 2 === (set ? 1 : 0)) return at;
        else at++;
      }
      at = Math.min(at, end);
    }
    return before;
  }

  /** Sets or clears `first` up to `end`, which it does not. */
  fill(first: number, end: number, set: boolean): void {
    for (let at = first; at < end; ) {
      const index = Math.floor(at / PER_CHUNK);
      const base = index * PER_CHUNK;
      const last = Math.min(this.count, base + PER_CHUNK);
      const to = Math.min(end, last);
      if (at === base && to === last) this.#put(index, set ? FULL : undefined);
      else fillPart(this.#writable(index, set), at - base, to - base, set);
      at = to;
    }
  }

  clear(): void {
    this.#chunks.length = 0;
    this.#heldBytes = 0;
  }

  /** As {@link write} takes them; least significant bit of the first byte first, as qcow2 stores them. */
  read(offset: number, into: Uint8Array): void {
    this.#each(offset, into.length, (index, from, done, length) => {
      const chunk = this.#chunks[index];
      const part = into.subarray(done, done + length);
      if (chunk === undefined) part.fill(0);
      else part.set(chunk.subarray(from, from + length));
    });
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#each(offset, bytes.length, (index, from, done, length) => {
      const part = bytes.subarray(done, done + length);
      if (part.every((byte) => byte === 0)) this.fill(this.#bit(index, from), this.#bit(index, from + length), false);
      else if (part.every((byte) => byte === 0xff))
        this.fill(this.#bit(index, from), this.#bit(index, from + length), true);
      else (this.#writable(index, true) ?? this.#writable(index, false))?.set(part, from);
    });
    this.#trim();
  }

  /** Whether a range of bytes has no bit that is set, without looking where it takes no memory. */
  isClear(offset: number, lengthBytes: number): boolean {
    const end = Math.min(this.count, (offset + lengthBytes) * 8);
    return this.find(offset * 8, true, end) === end;
  }

  /** The same bits; those of a longer list that are new are clear. */
  copy(count = this.count): SparseBits {
    const copy = new SparseBits(count);
    for (const [index, chunk] of this.#chunks.entries()) {
      const [before, after] = [this.#lengthOf(index), copy.#lengthOf(index)];
      if (chunk === undefined || after <= 0) continue;
      if (chunk === FULL && before >= after) copy.#put(index, FULL);
      else {
        const bytes = new Uint8Array(after);
        bytes.set(chunk.subarray(0, Math.min(before, after)));
        copy.#put(index, bytes);
      }
    }
    // What stood for nothing in the last byte
    if (count > this.count) copy.fill(this.count, Math.min(count, this.lengthBytes * 8), false);
    copy.#trim();
    return copy;
  }

  /** Bits of the last byte that stand for nothing are clear. */
  #trim(): void {
    const chunk = this.#chunks[Math.floor(this.count / PER_CHUNK)];
    if (this.count % 8 > 0 && chunk !== undefined && chunk !== FULL) {
      chunk[chunk.length - 1]! &= (1 << (this.count % 8)) - 1;
    }
  }

  #bit(index: number, byte: number): number {
    return Math.min(this.count, index * PER_CHUNK + byte * 8);
  }

  #lengthOf(index: number): number {
    return Math.min(CHUNK_BYTES, this.lengthBytes - index * CHUNK_BYTES);
  }

  /** Calls `run` for each piece of a range of bytes: where it begins in its chunk, and in the range. */
  #each(
    offset: number,
    lengthBytes: number,
    run: (index: number, from: number, done: number, length: number) => void,
  ): void {
    for (let done = 0; done < lengthBytes; ) {
      const index = Math.floor((offset + done) / CHUNK_BYTES);
      const from = (offset + done) % CHUNK_BYTES;
      const length = Math.min(lengthBytes - done, CHUNK_BYTES - from);
      run(index, from, done, length);
      done += length;
    }
  }

  /** A chunk whose bits can be changed one by one; undefined where all of them are as they are to be, or stay set. */
  #writable(index: number, set: boolean): Uint8Array | undefined {
    const chunk = this.#chunks[index];
    if (chunk !== undefined && chunk !== FULL) return chunk;
    if ((chunk === undefined) === !set) return undefined;
    const length = this.#lengthOf(index);
    if (this.#heldBytes + length > MAX_HELD_BYTES) {
      if (set) this.#put(index, FULL);
      return undefined;
    }
    const fresh = new Uint8Array(length).fill(chunk === FULL ? 0xff : 0);
    this.#put(index, fresh);
    this.#trim();
    return fresh;
  }

  #put(index: number, chunk: Uint8Array | undefined): void {
    const before = this.#chunks[index];
    if (before !== undefined && before !== FULL) this.#heldBytes -= before.length;
    if (chunk !== undefined && chunk !== FULL) this.#heldBytes += chunk.length;
    this.#chunks[index] = chunk;
  }
}

function fillPart(bytes: Uint8Array | undefined, first: number, end: number, set: boolean): void {
  if (bytes === undefined) return;
  for (let at = first; at < end; ) {
    if (at % 8 === 0 && end - at >= 8) {
      const whole = Math.floor((end - at) / 8);
      bytes.fill(set ? 0xff : 0, at >> 3, (at >> 3) + whole);
      at += whole * 8;
      continue;
    }
    if (set) bytes[at >> 3]! |= 1 << (at & 7);
    else bytes[at >> 3]! &= ~(1 << (at & 7));
    at++;
  }
}
