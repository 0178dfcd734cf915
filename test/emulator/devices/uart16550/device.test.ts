import test from 'ava';
import {
  INPUT_RING_BYTES,
  OUTPUT_RING_BYTES,
  Uart16550,
  UartPort,
} from '../../../../emulator/devices/uart16550/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { RecordedLine, sharedWords } from '../../../macros/platform.ts';

const encode = (text: string) => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

function make() {
  const words = sharedWords(Uart16550.WORDS);
  const line = new RecordedLine();
  const uart = new Uart16550(words, line);
  uart.reset();
  return { words, line, uart };
}

function send(uart: Uart16550, text: string): void {
  for (const byte of encode(text)) uart.write(0, 1, byte);
}

test('Uart16550: after reset it is empty, connected and silent', (t) => {
  const { uart, line } = make();
  t.is(uart.read(5, 1), 0x60);
  t.is(uart.read(6, 1), 0xb0);
  t.is(uart.read(2, 1), 0x01);
  t.is(uart.read(0, 1), 0);
  t.false(line.level);
});

test('Uart16550: what a guest writes is drained once, also through another thread’s object', (t) => {
  const { uart, words } = make();
  send(uart, 'hello');
  const host = new Uart16550(words, new RecordedLine());
  t.is(decode(host.drainOutput(2)), 'he');
  t.is(decode(host.drainOutput()), 'llo');
  t.is(host.drainOutput().length, 0);
});

test('Uart16550: enabling THRI while empty raises it, IIR clears it, the next byte raises it again', (t) => {
  const { uart, line } = make();
  uart.write(1, 1, 2);
  t.true(line.level);
  t.is(uart.read(2, 1), 0x02);
  t.false(line.level);
  t.is(uart.read(2, 1), 0x01);
  uart.write(0, 1, 65);
  t.true(line.level);
  uart.write(1, 1, 0);
  t.false(line.level);
});

test('Uart16550: input raises RDA at the trigger level, a timeout below it, by data sheet order', (t) => {
  const { uart, line } = make();
  uart.write(2, 1, 0x81);
  uart.write(1, 1, 0x03);
  t.is(uart.pushInput(encode('abc')), 3);
  t.true(line.level);
  t.is(uart.read(2, 1), 0xcc, 'timeout before transmitter empty');
  uart.pushInput(encode('defgh'));
  t.is(uart.read(2, 1), 0xc4);
  t.is(uart.read(5, 1) & 1, 1);
  let text = '';
  while ((uart.read(5, 1) & 1) !== 0) text += String.fromCharCode(uart.read(0, 1));
  t.is(text, 'abcdefgh');
  t.is(uart.read(2, 1), 0xc2);
  t.false(line.level);
});

test('Uart16550: with FIFOs off one byte at a time is ready, and none is lost', (t) => {
  const { uart } = make();
  uart.write(1, 1, 1);
  uart.pushInput(encode('xyz'));
  t.is(uart.read(2, 1), 0x04);
  t.is([uart.read(0, 1), uart.read(0, 1), uart.read(0, 1)].map((c) => String.fromCharCode(c)).join(''), 'xyz');
  t.is(uart.read(2, 1), 0x01);
});

test('Uart16550: a guest that clears its FIFO loses at most sixteen bytes of what the host typed ahead', (t) => {
  const { uart } = make();
  uart.write(2, 1, 0x01);
  uart.pushInput(encode('0123456789abcdefREST'));
  uart.write(2, 1, 0x03);
  let text = '';
  while ((uart.read(5, 1) & 1) !== 0) text += String.fromCharCode(uart.read(0, 1));
  t.is(text, 'REST');
});

test('Uart16550: the divisor and FCR are kept apart from data by DLAB', (t) => {
  const { uart } = make();
  uart.write(3, 1, 0x83);
  uart.write(0, 1, 0x34);
  uart.write(1, 1, 0x12);
  t.is(uart.read(0, 1), 0x34);
  t.is(uart.read(1, 1), 0x12);
  uart.write(3, 1, 0x03);
  t.is(uart.read(1, 1), 0);
  uart.write(7, 1, 0xa5);
  t.is(uart.read(7, 1), 0xa5);
  t.is(uart.drainOutput().length, 0);
});

test('Uart16550: loopback returns bytes, cuts the host off and shows the modem lines', (t) => {
  const { uart } = make();
  uart.write(2, 1, 0x01);
  uart.write(4, 1, 0x1a);
  t.is(uart.read(6, 1) & 0xf0, 0x90, 'RTS and OUT2 come back as CTS and DCD');
  uart.pushInput(encode('host'));
  send(uart, 'loop');
  t.is(uart.drainOutput().length, 0);
  t.is(Array.from({ length: 4 }, () => String.fromCharCode(uart.read(0, 1))).join(''), 'loop');
  t.is(uart.read(5, 1) & 1, 0);
  uart.write(4, 1, 0x0b);
  t.is(uart.read(0, 1), 'h'.charCodeAt(0));
});

test('Uart16550: a guest that overruns its own loopback gets OE once, and the line status interrupt', (t) => {
  const { uart, line } = make();
  uart.write(2, 1, 0x01);
  uart.write(1, 1, 0x04);
  uart.write(4, 1, 0x10);
  send(uart, 'x'.repeat(17));
  t.true(line.level);
  t.is(uart.read(2, 1), 0xc6);
  t.is(uart.read(5, 1) & 0x02, 0x02);
  t.is(uart.read(5, 1) & 0x02, 0);
  t.false(line.level);
});

test('Uart16550: modem deltas raise their interrupt and clear when read', (t) => {
  const { uart, line } = make();
  uart.write(1, 1, 0x08);
  uart.write(4, 1, 0x10);
  t.true(line.level);
  t.is(uart.read(2, 1), 0x00);
  t.is(uart.read(6, 1) & 0x0f, 0x0b, 'CTS, DSR and DCD fell');
  t.false(line.level);
});

test('Uart16550: a guest that never stops writing is held by THRE and loses only what it writes in spite of it', (t) => {
  const { uart, line } = make();
  uart.write(1, 1, 2);
  let written = 0;
  while ((uart.read(5, 1) & 0x20) !== 0 && written < OUTPUT_RING_BYTES * 2) {
    for (let index = 0; index < 16; index++) uart.write(0, 1, written++ & 0xff);
  }
  t.true(written <= OUTPUT_RING_BYTES);
  uart.read(2, 1);
  t.false(line.level, 'transmitter not empty: no interrupt');
  for (let index = 0; index < 100; index++) uart.write(0, 1, 0xee);
  const bytes = uart.drainOutput();
  t.is(bytes.length, OUTPUT_RING_BYTES);
  t.true(bytes.subarray(0, written).every((byte, index) => byte === (index & 0xff)));
  t.true(line.level, 'drained: the guest is told');
  t.is(uart.read(5, 1) & 0x20, 0x20);
});

test('Uart16550: a host that pushes more than fits is told how much was taken', (t) => {
  const { uart } = make();
  const taken = uart.pushInput(new Uint8Array(INPUT_RING_BYTES * 2).fill(65));
  // One byte went on to the receiver
  t.true(taken === INPUT_RING_BYTES);
  t.is(uart.pushInput(Uint8Array.of(1)), 1);
  t.is(uart.pushInput(Uint8Array.of(1)), 0);
});

test('Uart16550: wide and far accesses of a guest do no harm', (t) => {
  const { uart } = make();
  for (const offset of [8, 0x10, 0xfc]) {
    uart.write(offset, 4, 0xffff_ffff);
    t.is(uart.read(offset, 4), 0);
  }
  uart.write(5, 1, 0xff);
  uart.write(6, 1, 0xff);
  t.is(uart.read(5, 1), 0x60);
  t.is(uart.read(6, 1), 0xb0);
  uart.write(0, 4, 0x4142_4344);
  t.is(decode(uart.drainOutput()), 'D');
});

test('Uart16550: state carries what the guest has not read, and not what the host has not drained', (t) => {
  const a = make();
  a.uart.write(2, 1, 0xc1);
  a.uart.write(1, 1, 0x05);
  a.uart.pushInput(encode('0123456789abcdefghij'));
  a.uart.read(0, 1);
  send(a.uart, 'out');
  const b = make();
  b.uart.prepareState(a.uart.saveState(), 1)();
  t.deepEqual(b.uart.saveState(), a.uart.saveState());
  t.true(b.line.level);
  let text = '';
  while ((b.uart.read(5, 1) & 1) !== 0) text += String.fromCharCode(b.uart.read(0, 1));
  t.is(text, '123456789abcdefghij');
  t.is(b.uart.drainOutput().length, 0);
  const good = a.uart.saveState() as Record<string, unknown>;
  for (const wrong of [
    { ...good, fifo: new Uint8Array(17) },
    { ...good, input: new Uint8Array(INPUT_RING_BYTES + 1) },
    { ...good, divisor: -1 },
    { ...good, ier: 0x10 },
  ]) {
    t.throws(() => b.uart.prepareState(wrong, 1), { instanceOf: StateError });
  }
});

test('Uart16550: firmware prints between the guest’s bytes, and is told when the ring is full', (t) => {
  const { uart } = make();
  send(uart, 'a');
  t.is(uart.firmwareWrite(encode('bc')), 2);
  send(uart, 'd');
  uart.pushInput(encode('in'));
  t.is(decode(uart.firmwareRead(10)), 'in');
  t.is(uart.firmwareRead(10).length, 0);
  t.is(decode(uart.drainOutput()), 'abcd');
  t.is(uart.firmwareWrite(new Uint8Array(OUTPUT_RING_BYTES + 1)), OUTPUT_RING_BYTES);
  t.is(uart.read(5, 1) & 0x20, 0);
});

test('UartPort: output arrives without polling, ready is told when there is room, close ends both', async (t) => {
  const { uart, words } = make();
  const port = new UartPort(uart);
  let text = '';
  const done = new Promise<void>((resolve) => {
    port.output.subscribe({ next: (bytes) => (text += decode(bytes)), complete: resolve });
  });
  let ready = 0;
  port.ready.subscribe(() => ready++);
  const guest = new Uart16550(words, new RecordedLine());
  guest.write(2, 1, 1);
  await new Promise((resolve) => setTimeout(resolve, 5));
  send(guest, 'boot ');
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.is(text, 'boot ');
  const flood = new Uint8Array(INPUT_RING_BYTES + 100).fill(66);
  const taken = port.write(flood);
  t.true(taken < flood.length);
  for (let index = 0; index < INPUT_RING_BYTES; index++) guest.read(0, 1);
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.is(ready, 1);
  send(guest, 'end');
  port.close();
  await done;
  t.is(text, 'boot end');
  t.is(port.write(flood), 0);
});

test('Uart16550: output that wraps around the end of the ring is drained in order', (t) => {
  const { uart } = make();
  const piece = OUTPUT_RING_BYTES - 100;
  let written = 0;
  let read = 0;
  for (let turn = 0; turn < 4; turn++) {
    for (let index = 0; index < piece; index++) uart.write(0, 1, written++ % 251);
    const bytes = uart.drainOutput();
    t.is(bytes.length, piece);
    t.true(bytes.every((byte) => byte === read++ % 251));
  }
});

test('UartPort: a guest that prints without end leaves the event loop its turns, and loses nothing', async (t) => {
  const { uart, words } = make();
  const port = new UartPort(uart);
  const guest = new Uart16550(words, new RecordedLine());
  let pieces = 0;
  let bytes = 0;
  port.output.subscribe((piece) => {
    pieces++;
    bytes += piece.length;
    // Whenever the host has taken something there is more
    if (pieces < 100_000) send(guest, 'more');
  });
  send(guest, 'more');
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setTimeout(resolve, 4));
  t.true(pieces > 1 && pieces < 1000, `${pieces} pieces in 20 ms`);
  port.close();
  t.is(bytes, pieces * 4);
});

test('UartPort: while its output is held the guest finds the transmitter full, and nothing is lost', async (t) => {
  const { uart, words } = make();
  const port = new UartPort(uart);
  const guest = new Uart16550(words, new RecordedLine());
  let text = '';
  port.output.subscribe((bytes) => (text += decode(bytes)));
  const pause = () => new Promise((resolve) => setTimeout(resolve, 20));
  await pause();
  port.holdOutput(true);
  send(guest, 'first');
  await pause();
  let sent = 'first';
  t.is(text, '');
  const ready = () => (guest.read(5, 1) & 0x20) !== 0;
  while (ready()) {
    send(guest, 'x'.repeat(16));
    sent += 'x'.repeat(16);
  }
  await pause();
  t.is(text, '');
  t.false(ready());
  port.holdOutput(false);
  await pause();
  t.true(ready());
  t.is(text, sent);
  port.holdOutput(true);
  send(guest, 'last');
  port.close();
  t.is(text, `${sent}last`);
});
