import type { Observable } from 'rxjs';
import { Subject } from 'rxjs/internal/Subject';
import type { CharacterPort } from '../backends.ts';
import { waitForWord } from '../shared/mod.ts';
import type { Uart16550 } from './device.ts';
import { WORD } from './state.ts';

/** How long output that comes without end is gathered, in `ms`: 64 KiB in that time is the most that can leave */
const GATHER_MS = 1;

/**
 * The host's side of a UART, for the thread that owns its streams: output is drained when the guest wakes us and
 * handed on as it comes. Subscribe before the guest runs; bytes that nobody listens to are dropped, as a serial
 * line without a terminal does.
 */
export class UartPort implements CharacterPort {
  readonly #uart: Uart16550;
  readonly #output = new Subject<Uint8Array>();
  readonly #ready = new Subject<void>();
  #closed = false;
  /** Ends a hold; undefined while there is none */
  #releaseOutput: (() => void) | undefined;
  #held: Promise<void> | undefined;

  constructor(uart: Uart16550) {
    this.#uart = uart;
    void this.#pumpOutput();
    void this.#pumpReady();
  }

  get output(): Observable<Uint8Array> {
    return this.#output;
  }

  get ready(): Observable<void> {
    return this.#ready;
  }

  write(bytes: Uint8Array): number {
    return this.#closed ? 0 : this.#uart.pushInput(bytes);
  }

  /** The ring fills up meanwhile, and then "transmitter empty" stays clear. */
  holdOutput(held: boolean): void {
    if (held && this.#held === undefined) {
      this.#held = new Promise((resolve) => {
        this.#releaseOutput = resolve;
      });
    } else if (!held) {
      this.#releaseOutput?.();
      this.#held = undefined;
      this.#releaseOutput = undefined;
    }
  }

  /** Hands on what is there already, without waiting, also during a hold: before a pause, a save or the end. */
  flush(): void {
    const bytes = this.#uart.drainOutput();
    if (bytes.length > 0) this.#output.next(bytes);
  }

  /** Ends the streams, after what the guest has written so far. */
  close(): void {
    if (this.#closed) return;
    this.flush();
    this.#closed = true;
    this.holdOutput(false);
    const { words } = this.#uart;
    for (const index of [WORD.outputNotify, WORD.inputNotify]) {
      Atomics.add(words, index, 1);
      Atomics.notify(words, index);
    }
    this.#output.complete();
    this.#ready.complete();
  }

  async #pumpOutput(): Promise<void> {
    const { words } = this.#uart;
    while (!this.#closed) {
      if (this.#held !== undefined) {
        await this.#held;
        continue;
      }
      // The count is read before the ring: a byte that comes in between makes the wait end at once
      const seen = Atomics.load(words, WORD.outputNotify);
      this.flush();
      // A guest that prints at length has more by now. Waiting would end at once, and again: the event loop would never
      // get a turn, and every piece would be a few bytes. The ring holds what comes meanwhile.
      if (Atomics.load(words, WORD.outputNotify) !== seen) await pause(GATHER_MS);
      else await waitForWord(words, WORD.outputNotify, seen);
    }
  }

  async #pumpReady(): Promise<void> {
    const { words } = this.#uart;
    while (!this.#closed) {
      const seen = Atomics.load(words, WORD.inputNotify);
      await waitForWord(words, WORD.inputNotify, seen);
      if (!this.#closed && Atomics.load(words, WORD.inputNotify) !== seen) this.#ready.next();
    }
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(() => resolve(), ms));
}
