import type { Duplex } from 'node:stream';
import type { CharacterPort } from '../../emulator/devices/backends.ts';

/** Input that waits for room in the guest's FIFO; beyond it the link is paused, in `bytes` */
const MAX_WAITING_BYTES = 65536;
/** Output that a reader has not taken; beyond it a serial line loses bytes rather than stop the guest, in `bytes` */
const MAX_UNREAD_BYTES = 1 << 20;

/** Joins a byte stream to the guest's serial port, both ways. */
export function joinSerial(link: Duplex, port: CharacterPort): void {
  let waiting = new Uint8Array(0);
  const offer = (): void => {
    if (waiting.length > 0) waiting = waiting.slice(port.write(waiting));
    if (waiting.length < MAX_WAITING_BYTES) link.resume();
  };
  port.output.subscribe((bytes) => {
    if (link.writableEnded || link.destroyed || link.writableLength > MAX_UNREAD_BYTES) return;
    link.write(bytes);
  });
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
}
