const PRIMES = [0x9e37_79b1, 0x85eb_ca77];

/** A 64-bit digest that tells states apart; it proves nothing against who makes states on purpose. */
export class Digest {
  #low = 0x243f_6a88;
  #high = 0x85a3_08d3;

  words(words: Uint32Array | Int32Array): this {
    let low = this.#low;
    let high = this.#high;
    for (let at = 0; at < words.length; at++) {
      const word = words[at]!;
      low = Math.imul(low ^ word, PRIMES[0]!);
      low ^= low >>> 15;
      high = Math.imul(high + word, PRIMES[1]!) ^ low;
      high ^= high >>> 13;
    }
    this.#low = low;
    this.#high = high;
    return this;
  }

  bytes(bytes: Uint8Array): this {
    const whole = bytes.length >> 2;
    const words = new Uint32Array(whole + 2);
    new Uint8Array(words.buffer).set(bytes);
    words[whole + 1] = bytes.length;
    return this.words(words);
  }

  text(text: string): this {
    const units = new Uint32Array(text.length + 1);
    for (let at = 0; at < text.length; at++) units[at] = text.charCodeAt(at);
    units[text.length] = text.length;
    return this.words(units);
  }

  get value(): bigint {
    return (BigInt(this.#high >>> 0) << 32n) | BigInt(this.#low >>> 0);
  }
}
