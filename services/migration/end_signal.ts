/** Why something ends, known once and to all that wait. */
export class EndSignal {
  readonly #controller = new AbortController();

  get signal(): AbortSignal {
    return this.#controller.signal;
  }
  get ended(): boolean {
    return this.signal.aborted;
  }

  /** The first reason counts. */
  end(error: Error): void {
    if (!this.ended) this.#controller.abort(error);
  }

  /** @throws the reason */
  check(): void {
    this.signal.throwIfAborted();
  }

  /** The work's result, or the reason of the end, whichever comes first. */
  guard<T>(work: Promise<T>): Promise<T> {
    const { signal } = this;
    return new Promise<T>((resolve, reject) => {
      const onAbort = () => reject(signal.reason);
      if (signal.aborted) onAbort();
      signal.addEventListener('abort', onAbort, { once: true });
      work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
    });
  }
}

export function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
