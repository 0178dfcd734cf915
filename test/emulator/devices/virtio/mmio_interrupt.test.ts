import test from 'ava';
import { MmioInterrupt } from '../../../../emulator/devices/virtio/mmio_interrupt.ts';
import { VirtioMmioTransport, VirtioRng } from '../../../../emulator/devices/virtio/mod.ts';
import { sharedWords } from '../../../macros/platform.ts';
import { makeMemory } from './driver.ts';
import { TestLine } from './registers.ts';

const STATUS = 0;
const ACKNOWLEDGE = 4;

/** A device on the main thread, and a hart's own object over what is shared; both have the same line. */
function make() {
  const words = sharedWords(MmioInterrupt.WORDS);
  const line = new TestLine();
  const device = new VirtioRng({ memory: makeMemory(16), id: 'rng', fillRandom: (bytes) => bytes.fill(1) });
  const transport = new VirtioMmioTransport(device, line, new MmioInterrupt(line, words));
  return { line, transport, hart: new MmioInterrupt(line, words) };
}

test('MmioInterrupt: a hart sees what the device raised, and its acknowledgement lets the line go', (t) => {
  const { line, transport, hart } = make();
  t.is(hart.read(STATUS, 4), 0);
  transport.raise(1);
  transport.raise(2);
  t.is(hart.read(STATUS, 4), 3);
  t.is(hart.read(STATUS, 4), 3, 'a read takes nothing');
  hart.write(ACKNOWLEDGE, 4, 1);
  t.is(transport.read(0x60, 4), 2);
  t.true(line.level, 'one cause is left');
  hart.write(ACKNOWLEDGE, 4, 0xffff_ffff);
  t.is(transport.read(0x60, 4), 0);
  t.false(line.level);
  transport.raise(1);
  t.true(line.level, 'the next one comes again');
  t.is(line.rises, 2);
});

test('MmioInterrupt: a reset of the device takes the causes from the harts too', (t) => {
  const { line, transport, hart } = make();
  transport.raise(2);
  transport.write(0x70, 4, 0);
  t.is(hart.read(STATUS, 4), 0);
  t.false(line.level);
});

test('MmioInterrupt: registers are 32 bits wide, and InterruptACK is not read nor InterruptStatus written', (t) => {
  const { line, transport, hart } = make();
  transport.raise(1);
  for (const size of [1, 2] as const) {
    t.is(hart.read(STATUS, size), 0);
    hart.write(ACKNOWLEDGE, size, 1);
  }
  hart.write(STATUS, 4, 0);
  t.is(hart.read(ACKNOWLEDGE, 4), 0);
  t.is(hart.read(STATUS, 4), 1);
  t.true(line.level);
});
