import { type Duplex, duplexPair } from 'node:stream';
import test from 'ava';
import { Subject } from 'rxjs';
import type { CharacterPort } from '../../../emulator/devices/backends.ts';
import { HOLD_BYTES, LinkOutput } from '../../../services/machine/link_output.ts';
import { joinSerial } from '../../../services/machine/serial_link.ts';

const soon = (ms = 5) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** A guest that writes whenever it may: numbered pieces of 1000 bytes. */
class Guest {
  readonly holds: boolean[] = [];
  held = false;
  written = 0;

  piece(): Uint8Array {
    return new Uint8Array(1000).fill(this.written++ % 251);
  }
  readonly hold = (held: boolean): void => {
    this.held = held;
    this.holds.push(held);
  };
  /** Up to `count` pieces, as far as it may. */
  write(output: LinkOutput, count: number): void {
    for (let i = 0; i < count && !this.held; i++) output.write(this.piece());
  }
}

/** Reads at most so many bytes. */
function readSome(far: Duplex, most: number): Buffer {
  const parts: Buffer[] = [];
  for (let left = most; left > 0; ) {
    const part = far.read(Math.min(left, far.readableLength)) as Buffer | null;
    if (part === null || part.length === 0) break;
    parts.push(part);
    left -= part.length;
  }
  return Buffer.concat(parts);
}

test('LinkOutput makes the guest wait for a slow reader, and the reader gets every byte', async (t) => {
  const [near, far] = duplexPair();
  const guest = new Guest();
  const output = new LinkOutput(near, { hold: guest.hold });
  far.on('readable', () => {});
  const seen: Buffer[] = [];
  let most = 0;
  const bytes = () => seen.reduce((sum, part) => sum + part.length, 0);
  while (guest.written < 500 || bytes() < 500_000) {
    guest.write(output, guest.written < 500 ? 500 - guest.written : 0);
    most = Math.max(most, output.unreadBytes);
    seen.push(readSome(far, 3000));
    await soon(0);
  }
  t.true(guest.holds.includes(true));
  t.false(guest.held);
  t.true(most < HOLD_BYTES + 1000, `${most} bytes were kept`);
  const all = Buffer.concat(seen);
  for (let i = 0; i < 500; i++) t.true(all.subarray(i * 1000, i * 1000 + 1000).equals(Buffer.alloc(1000, i % 251)));
});

test('LinkOutput: without patience the guest waits as long as the reader takes', async (t) => {
  const [near, far] = duplexPair();
  const guest = new Guest();
  const output = new LinkOutput(near, { hold: guest.hold });
  // What fits the link itself is no longer ours
  for (let turn = 0; turn < 10; turn++) {
    guest.write(output, 500);
    await soon();
  }
  t.true(guest.held);
  await soon(100);
  t.true(guest.held);
  far.resume();
  await soon(50);
  t.false(guest.held);
});

test('LinkOutput: a reader that takes nothing holds the guest no longer than its patience, and no memory', async (t) => {
  const [near, far] = duplexPair();
  const guest = new Guest();
  const output = new LinkOutput(near, { hold: guest.hold, patienceMs: 20 });
  guest.write(output, 500);
  t.true(guest.held);
  await soon(100);
  t.false(guest.held);
  guest.write(output, 5000);
  t.true(output.unreadBytes < HOLD_BYTES + 2000, `${output.unreadBytes} bytes are kept`);
  // It goes on: from now on nothing is lost again
  let got = 0;
  far.on('data', (chunk: Buffer) => (got += chunk.length));
  await soon(50);
  t.is(output.unreadBytes, 0);
  const before = got;
  guest.write(output, 10);
  await soon(50);
  t.is(got - before, 10_000);
});

test('LinkOutput keeps what a device had under way when it was told to wait, and single bytes without a list', async (t) => {
  const [near, far] = duplexPair();
  const output = new LinkOutput(near, { hold: () => {} });
  output.write(new Uint8Array(HOLD_BYTES));
  output.write(new Uint8Array(900_000));
  for (let i = 0; i < 50_000; i++) output.write(Uint8Array.of(i % 251));
  const kept = output.unreadBytes;
  t.is(kept, HOLD_BYTES + 900_000 + 50_000);
  for (let i = 0; i < 100_000; i++) output.write(new Uint8Array(100));
  t.true(output.unreadBytes < (1 << 20) + 200);
  const parts: Buffer[] = [];
  far.on('data', (chunk: Buffer) => parts.push(chunk));
  await output.end();
  await soon();
  const all = Buffer.concat(parts).subarray(HOLD_BYTES + 900_000, kept);
  t.true(all.every((byte, i) => byte === i % 251));
});

test('LinkOutput: where the link has gone nobody waits', async (t) => {
  const [near, far] = duplexPair();
  const guest = new Guest();
  const output = new LinkOutput(near, { hold: guest.hold });
  near.on('error', () => {});
  guest.write(output, 500);
  t.true(guest.held);
  const ended = output.end();
  near.destroy();
  far.destroy();
  await ended;
  t.false(guest.held);
  guest.write(output, 500);
  t.is(output.unreadBytes, 0);
  t.false(guest.held);
});

test('joinSerial: bytes go both ways, and a guest that takes no more input stops the link', async (t) => {
  const [near, far] = duplexPair();
  const output = new Subject<Uint8Array>();
  const ready = new Subject<void>();
  const taken: number[] = [];
  let room = 4;
  const port: CharacterPort = {
    output,
    ready,
    write: (bytes) => {
      const count = Math.min(room, bytes.length);
      taken.push(...bytes.subarray(0, count));
      room -= count;
      return count;
    },
    holdOutput: () => {},
  };
  const link = joinSerial(near, port);
  far.write(Uint8Array.of(1, 2, 3, 4, 5, 6));
  await soon();
  t.deepEqual(taken, [1, 2, 3, 4]);
  room = 10;
  ready.next();
  t.deepEqual(taken, [1, 2, 3, 4, 5, 6]);
  let text = '';
  far.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
  output.next(Buffer.from('bye'));
  await link.end();
  await soon();
  t.is(text, 'bye');
});
