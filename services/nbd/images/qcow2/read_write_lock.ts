/** Many who use the map of the image, or one who changes it; in the order of asking, so that neither starves. */
export class ReadWriteLock {
  #readers = 0;
  #writing = false;
  readonly #queue: { exclusive: boolean; start: () => void }[] = [];

  /** Nobody changes the map or waits to: who neither awaits nor calls back may use it without asking */
  get idle(): boolean {
    return !this.#writing && this.#queue.length === 0;
  }

  async shared<T>(run: () => Promise<T>): Promise<T> {
    if (this.idle) this.#readers++;
    else await new Promise<void>((start) => this.#queue.push({ exclusive: false, start }));
    try {
      return await run();
    } finally {
      this.#readers--;
      this.#next();
    }
  }

  async exclusive<T>(run: () => Promise<T>): Promise<T> {
    if (this.idle && this.#readers === 0) this.#writing = true;
    else await new Promise<void>((start) => this.#queue.push({ exclusive: true, start }));
    try {
      return await run();
    } finally {
      this.#writing = false;
      this.#next();
    }
  }

  #next(): void {
    for (let first = this.#queue[0]; first !== undefined && !this.#writing; first = this.#queue[0]) {
      if (first.exclusive) {
        if (this.#readers > 0) return;
        this.#writing = true;
      } else this.#readers++;
      this.#queue.shift();
      first.start();
    }
  }
}
