/** Encoded bytes that may be kept, in `bytes`; a full frame of text at 1080p is about 0.2 MB */
const MAX_BYTES = 16 << 20;

/**
 * Rectangles encoded since the picture last changed. Viewers that ask for the same rectangle in the same format get
 * the same bytes, also while the first is still being made, so eight equal viewers cost about as much as one.
 */
export class EncodeCache {
  readonly #entries = new Map<string, Promise<Uint8Array>>();
  #bytes = 0;
  #generation = 0;
  /** Encodings done and saved, for measurements */
  hits = 0;
  misses = 0;

  /** The picture changed. */
  clear(): void {
    if (this.#entries.size === 0) return;
    this.#entries.clear();
    this.#bytes = 0;
    this.#generation++;
  }

  get(key: string, make: () => Promise<Uint8Array>): Promise<Uint8Array> {
    const found = this.#entries.get(key);
    if (found !== undefined) {
      this.hits++;
      return found;
    }
    this.misses++;
    const made = make();
    if (this.#bytes < MAX_BYTES) {
      const generation = this.#generation;
      this.#entries.set(key, made);
      made.then(
        (bytes) => {
          if (generation === this.#generation) this.#bytes += bytes.length;
        },
        () => this.#entries.delete(key),
      );
    }
    return made;
  }
}
