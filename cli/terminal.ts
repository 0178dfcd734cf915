import process from 'node:process';
import type { Duplex } from 'node:stream';

const ESCAPE = 0x01; // Ctrl-A
const HELP = `
Ctrl-A x   quit: the machine ends at once
Ctrl-A a   send Ctrl-A to the guest
Ctrl-A h   this help
`;

export interface TerminalHandlers {
  quit(): void;
}

/**
 * The guest's serial port on this terminal: raw mode while the machine runs, so that every key reaches the guest,
 * and Ctrl-A as the way out (QEMU's keys). Where standard input is not a terminal, bytes go through as they are.
 */
export class Terminal {
  readonly #serial: Duplex;
  readonly #handlers: TerminalHandlers;
  readonly #isTty = process.stdin.isTTY === true;
  #escaped = false;
  #open = true;

  constructor(serial: Duplex, handlers: TerminalHandlers) {
    this.#serial = serial;
    this.#handlers = handlers;
    if (this.#isTty) {
      process.stdin.setRawMode(true);
      // Whatever way this process ends, the user gets a usable terminal back.
      process.on('exit', this.#restore);
      process.on('SIGCONT', this.#raw);
    }
    process.stdin.on('data', this.#input);
    process.stdin.resume();
    serial.on('data', this.#output);
    serial.on('drain', this.#drained);
    process.stdout.on('drain', this.#outputDrained);
    process.stdout.on('error', this.#outputFailed);
  }

  /** A line for the user that does not disturb the guest's: on standard error. */
  notice(text: string): void {
    notice(text, this.#open && this.#isTty);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    process.stdin.off('data', this.#input);
    process.stdin.pause();
    this.#serial.off('data', this.#output);
    this.#serial.off('drain', this.#drained);
    process.stdout.off('drain', this.#outputDrained);
    this.#restore();
    process.off('exit', this.#restore);
    process.off('SIGCONT', this.#raw);
  }

  readonly #restore = (): void => {
    if (this.#isTty) process.stdin.setRawMode(false);
  };
  readonly #raw = (): void => {
    if (this.#isTty && this.#open) process.stdin.setRawMode(true);
  };

  readonly #output = (chunk: Uint8Array): void => {
    // A terminal that is stopped stops the guest's output, not our memory.
    if (!process.stdout.write(chunk)) this.#serial.pause();
  };
  readonly #outputDrained = (): void => {
    this.#serial.resume();
  };
  readonly #outputFailed = (): void => {
    this.#handlers.quit(); // the reader of our output has gone
  };

  readonly #input = (chunk: Buffer): void => {
    const bytes = this.#isTty ? this.#takeEscapes(chunk) : chunk;
    if (bytes.length > 0 && !this.#serial.write(bytes)) process.stdin.pause();
  };
  readonly #drained = (): void => {
    process.stdin.resume();
  };

  #takeEscapes(chunk: Buffer): Buffer {
    const out: number[] = [];
    for (const byte of chunk) {
      if (!this.#escaped) {
        if (byte === ESCAPE) this.#escaped = true;
        else out.push(byte);
        continue;
      }
      this.#escaped = false;
      const key = String.fromCharCode(byte).toLowerCase();
      if (key === 'x') this.#handlers.quit();
      else if (key === 'h' || key === '?') this.notice(HELP);
      else if (key === 'a' || byte === ESCAPE) out.push(ESCAPE);
    }
    return Buffer.from(out);
  }
}

/** `raw`: the terminal does not turn line ends into new lines itself */
export function notice(text: string, raw = false): void {
  const line = `${text}\n`;
  process.stderr.write(raw ? line.replaceAll('\n', '\r\n') : line);
}
