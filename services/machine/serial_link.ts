import type { Duplex } from 'node:stream';
import type { CharacterPort } from '../../emulator/devices/backends.ts';
import { LinkOutput } from './link_output.ts';

/** Input that waits for room in the guest's FIFO; beyond it the link is paused, in `bytes` */
const MAX_WAITING_BYTES = 65536;

/** A byte stream that was joined to the guest's port. */
export interface SerialLink {
  /** Resolves when the reader has taken what the guest has written; then the stream is ended */
  end(): Promise<void>;
}

/**
 * Joins a byte stream to the guest's serial port, both ways. `patienceMs`: how long the guest is made to wait for a
 * reader that takes nothing; for ever by default.
 */
export function joinSerial(link: Duplex, port: CharacterPort, options: { patienceMs?: number } = {}): SerialLink {
  let waiting = new Uint8Array(0);
  const offer = (): void => {
    if (waiting.length > 0) waiting = waiting.slice(port.write(waiting));
    if (waiting.length < MAX_WAITING_BYTES) link.resume();
  };
  const output = new LinkOutput(link, { ...options, hold: (held) => port.holdOutput(held) });
  port.output.subscribe((bytes) => output.write(bytes));
  port.ready.subscribe(offer);
  link.on('data', (chunk: Uint8Array) => {
    const joined = new Uint8Array(waiting.length + chunk.length);
    joined.set(waiting);
    joined.set(chunk, waiting.length);
    waiting = joined;
    if (waiting.length >= MAX_WAITING_BYTES) link.pause();
    offer();
  });
  // The terminal may go away; the guest runs on without it
  link.on('error', () => {});
  return output;
}
