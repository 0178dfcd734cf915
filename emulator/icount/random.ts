// ChaCha20 (RFC 8439, 2.3) as a generator: the same seed gives the same bytes, and who sees some cannot tell others.

const CONSTANTS = [0x61707865, 0x3320646e, 0x79622d32, 0x6b206574];
const DOUBLE_ROUNDS = 10;
const BLOCK_BYTES = 64;

export class SeededRandom {
  readonly #key: Uint32Array;
  #block = new Uint8Array(BLOCK_BYTES);
  #used = BLOCK_BYTES;
  #counter = 0;

  /** `seed`: 32 bytes */
  constructor(seed: Uint8Array) {
    if (seed.length !== 32) throw new RangeError(`Cannot seed with ${seed.length} bytes: 32 are needed`);
    const view = new DataView(seed.buffer, seed.byteOffset, seed.byteLength);
    this.#key = Uint32Array.from({ length: 8 }, (_, index) => view.getUint32(index * 4, true));
  }

  readonly fill = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length; at++) {
      if (this.#used === BLOCK_BYTES) this.#next();
      bytes[at] = this.#block[this.#used++]!;
    }
  };

  /** Bytes given so far, to go on from there */
  get position(): number {
    return this.#counter * BLOCK_BYTES - (BLOCK_BYTES - this.#used);
  }
  set position(bytes: number) {
    this.#counter = Math.floor(bytes / BLOCK_BYTES);
    this.#used = BLOCK_BYTES;
    const into = bytes % BLOCK_BYTES;
    if (into === 0) return;
    this.#next();
    this.#used = into;
  }

  #next(): void {
    const start = Uint32Array.from([...CONSTANTS, ...this.#key, this.#counter >>> 0, 0, 0, 0]);
    start[13] = Math.floor(this.#counter / 0x1_0000_0000);
    const x = start.slice();
    for (let round = 0; round < DOUBLE_ROUNDS; round++) {
      for (let column = 0; column < 4; column++) quarter(x, column, 4 + column, 8 + column, 12 + column);
      for (let column = 0; column < 4; column++) {
        quarter(x, column, 4 + ((column + 1) & 3), 8 + ((column + 2) & 3), 12 + ((column + 3) & 3));
      }
    }
    const view = new DataView(this.#block.buffer);
    for (let word = 0; word < 16; word++) view.setUint32(word * 4, (x[word]! + start[word]!) >>> 0, true);
    this.#counter++;
    this.#used = 0;
  }
}

function quarter(x: Uint32Array, a: number, b: number, c: number, d: number): void {
  const step = (to: number, from: number, turned: number, bits: number): void => {
    x[to] = x[to]! + x[from]!;
    const mixed = x[turned]! ^ x[to]!;
    x[turned] = (mixed << bits) | (mixed >>> (32 - bits));
  };
  step(a, b, d, 16);
  step(c, d, b, 12);
  step(a, b, d, 8);
  step(c, d, b, 7);
}
