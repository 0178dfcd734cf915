import { Worker } from 'node:worker_threads';
import test from 'ava';
import { PciFunction, PciHost, PciShared } from '../../../../emulator/devices/pci/mod.ts';
import { VirtioPciTransport, VirtioRng } from '../../../../emulator/devices/virtio/mod.ts';
import { RecordedLine, sharedWords } from '../../../macros/platform.ts';
import { makeMemory } from '../virtio/driver.ts';
import { BAR_ADDRESS, PciRegisters, SLOT } from '../virtio/registers.ts';

const ISR_ADDRESS = BAR_ADDRESS + 0x1000;
const COMMAND = 0x04;
const STATUS = 0x06;

/** A device on the bus, and a hart's own object over what is shared; each thread has lines of its own. */
function make() {
  const device = new VirtioRng({ memory: makeMemory(16), id: 'rng', fillRandom: (bytes) => bytes.fill(1) });
  const pci = new PciRegisters(device);
  return { pci, raise: (cause: number) => pci.transport.raise(cause), hart: new PciShared(pci.sharedWords, pci.lines) };
}

test('PciShared: a hart takes the causes where the guest has put the BAR, and lets the line go', (t) => {
  const { pci, raise, hart } = make();
  t.is(hart.acknowledge(ISR_ADDRESS), 0, 'nothing has happened');
  raise(1);
  raise(2);
  t.true(pci.line.level);
  t.is(hart.acknowledge(ISR_ADDRESS), 3);
  t.false(pci.line.level);
  t.is(hart.acknowledge(ISR_ADDRESS), 0);
  t.is(pci.pciConfig(STATUS, 2) & 8, 0, 'the configuration says so too');
  raise(1);
  t.true(pci.line.level, 'the next one comes again');
  t.is(pci.window.read(ISR_ADDRESS - 0x4_0000_0000, 1), 1, 'the main thread takes them as well');
  t.is(hart.acknowledge(ISR_ADDRESS), 0);
});

test('PciShared: a hart reads all of configuration space as the bus does, but for the window into the BAR', (t) => {
  const { pci, raise, hart } = make();
  raise(1);
  const own = SLOT << 15;
  const asked: number[] = [];
  for (const size of [1, 2, 4] as const) {
    for (const base of [own, 0, 2 << 15, own + 0x1000, 1 << 20, 0xfff_f000]) {
      for (let at = 0; at < 0x400; at += size) {
        const found = hart.config.read(base + at, size);
        if (found === -1) asked.push(base + at - own);
        else t.is(found, pci.host.ecam.read(base + at, size), `${(base + at).toString(16)}, ${size}`);
      }
    }
  }
  // The last capability's data register, in accesses of 1, 2 and 4 bytes
  t.is(asked.length, 4 + 2 + 1);
  t.is(new Set(asked.map((at) => at >>> 2)).size, 1);
  t.is(pci.pciConfig(asked[0]! - 16, 1), 9, 'the capability is a vendor’s');
  t.is(hart.config.read(own + 1, 2), -1, 'not aligned');
});

test('PciShared: a hart sees at once what was written, and the interrupt as it is', (t) => {
  const { pci, raise, hart } = make();
  const read = (register: number, size: 1 | 2 | 4) => hart.config.read((SLOT << 15) + register, size);
  pci.setPciConfig(0x3c, 1, 0x5a);
  t.is(read(0x3c, 1), 0x5a);
  pci.setPciConfig(0x20, 4, 0xffff_ffff);
  t.is(read(0x20, 4), 0xffff_c00c);
  t.is(read(STATUS, 2) & 8, 0);
  raise(1);
  t.is(read(STATUS, 2) & 8, 8);
  t.is(read(COMMAND, 4) >>> 16, pci.pciConfig(STATUS, 2));
  pci.setPciConfig(0x20, 4, BAR_ADDRESS % 2 ** 32);
  hart.acknowledge(ISR_ADDRESS);
  t.is(read(STATUS, 2) & 8, 0);
  raise(2);
  const state = structuredClone(pci.host.saveState());
  const there = make();
  there.pci.host.prepareState(state, 1)();
  t.is(there.hart.config.read((SLOT << 15) + 0x3c, 1), 0x5a);
  t.is(there.hart.config.read((SLOT << 15) + STATUS, 1) & 8, 0, 'the cause is the device’s to bring');
  pci.host.reset();
  t.is(read(0x3c, 1), 0);
  t.is(read(STATUS, 2) & 8, 0);
});

test('PciShared: what a hart has acknowledged does not come back when the command register is written', (t) => {
  const { pci, raise, hart } = make();
  raise(1);
  hart.acknowledge(ISR_ADDRESS);
  pci.setPciConfig(COMMAND, 2, 0x406);
  pci.setPciConfig(COMMAND, 2, 0x006);
  t.false(pci.line.level);
});

test('PciShared: with INTx disabled the causes are there and the line is not', (t) => {
  const { pci, raise, hart } = make();
  pci.setPciConfig(COMMAND, 2, 0x406);
  raise(1);
  t.false(pci.line.level);
  t.is(hart.acknowledge(ISR_ADDRESS), 1);
});

test('PciShared: no other address is the register, nor this one once it has moved or memory is off', (t) => {
  const { pci, raise, hart } = make();
  raise(1);
  for (const address of [0, 0x1000, ISR_ADDRESS + 1, ISR_ADDRESS - 1, ISR_ADDRESS % 2 ** 32, BAR_ADDRESS, 2 ** 52]) {
    t.is(hart.acknowledge(address), -1, address.toString(16));
  }
  pci.setPciConfig(COMMAND, 2, 0x004);
  t.is(hart.acknowledge(ISR_ADDRESS), -1, 'memory space is off');
  pci.setPciConfig(COMMAND, 2, 0x006);
  pci.setPciConfig(0x20, 4, (BAR_ADDRESS % 2 ** 32) + 0x4000);
  t.is(hart.acknowledge(ISR_ADDRESS), -1, 'it has moved');
  t.is(hart.acknowledge(ISR_ADDRESS + 0x4000), 1);
  pci.setPciConfig(0x24, 4, 1);
  t.is(hart.acknowledge(0x1_0000_0000 + (BAR_ADDRESS % 2 ** 32) + 0x5000), -1, 'outside the windows nothing answers');
});

for (const order of ['before', 'after']) {
  test(`PciShared: where another BAR lies over the register the bus decides, that one ${order} it`, (t) => {
    const lines = [0, 1, 2, 3].map(() => new RecordedLine());
    const shared = new PciShared(sharedWords(PciShared.WORDS), lines);
    const host = new PciHost({ shared });
    const over = new PciFunction({
      name: 'over',
      vendor: 1,
      device: 1,
      classCode: 0,
      bars: [{ index: 4, kind: 'memory64', sizeBytes: 0x1000, target: { read: () => 0x77, write: () => {} } }],
    });
    const device = new VirtioRng({ memory: makeMemory(16), id: 'rng', fillRandom: () => {} });
    const transport = new VirtioPciTransport(device);
    const slots = order === 'before' ? [over, transport] : [transport, over];
    for (const [index, pciFunction] of slots.entries()) {
      host.add(index + 1, pciFunction);
      const address = pciFunction === over ? ISR_ADDRESS : BAR_ADDRESS;
      const config = (register: number, value: number) => host.ecam.write(((index + 1) << 15) + register, 4, value);
      config(0x20, address % 2 ** 32);
      config(0x24, Math.floor(address / 2 ** 32));
      config(COMMAND, 2);
    }
    transport.raise(1);
    t.is(shared.acknowledge(ISR_ADDRESS), order === 'before' ? -1 : 1);
    t.is(host.mmio64.read(ISR_ADDRESS - 0x4_0000_0000, 4), order === 'before' ? 0x77 : 0);
  });
}

test('PciShared: a line stays high while another slot pulls it', (t) => {
  const lines = [0, 1, 2, 3].map(() => new RecordedLine());
  const shared = new PciShared(sharedWords(PciShared.WORDS), lines);
  for (const slot of [1, 5]) {
    shared.publish(slot, 0x4000_0000 + slot * 0x1000, 1);
    shared.status(slot).add(1);
    shared.updateLine(slot, 1, () => true);
  }
  t.is(shared.acknowledge(0x4000_1000), 1);
  t.true(lines[1]!.level);
  t.is(shared.acknowledge(0x4000_5000), 1);
  t.false(lines[1]!.level);
  t.throws(() => new PciShared(sharedWords(PciShared.WORDS - 1), lines), { instanceOf: RangeError });
  t.throws(() => new PciShared(sharedWords(PciShared.WORDS), lines.slice(1)), { instanceOf: RangeError });
});

const ROUNDS = 20_000;

test('PciShared: a device thread that raises and a hart thread that acknowledges lose no cause', async (t) => {
  t.timeout(60_000);
  const words = sharedWords(PciShared.WORDS);
  // 0 the line as last set, 1 causes that the hart has taken, 2 the device is done
  const seen = sharedWords(3);
  const url = new URL('../../../../emulator/devices/pci/mod.ts', import.meta.url).href;
  const source = `
    const { workerData: { words, seen } } = require('node:worker_threads');
    import(${JSON.stringify(url)}).then(({ PciShared }) => {
      const line = { set: (level) => Atomics.store(seen, 0, level ? 1 : 0) };
      const shared = new PciShared(words, [line, line, line, line]);
      for (;;) {
        const done = Atomics.load(seen, 2) === 1;
        if (shared.acknowledge(0x40001000) > 0) { Atomics.add(seen, 1, 1); Atomics.notify(seen, 1); }
        else if (done) break;
      }
    });`;
  const line = { set: (level: boolean) => void Atomics.store(seen, 0, level ? 1 : 0) };
  const shared = new PciShared(words, [line, line, line, line]);
  shared.publish(1, 0x4000_1000, 1);
  const status = shared.status(1);
  const worker = new Worker(source, { eval: true, workerData: { words, seen } });
  const failed = new Promise<never>((_, reject) => worker.on('error', reject));
  const ended = new Promise<number>((resolve) => worker.on('exit', resolve));
  let raised = 0;
  for (let round = 0; round < ROUNDS; round++) {
    // Every other cause waits until the one before was taken: those must be counted one by one
    if (round % 2 === 0) {
      for (let look = 0; status.value !== 0 && look < 20_000; look++) Atomics.wait(seen, 2, 0, 1);
      raised++;
    }
    status.add(1);
    shared.updateLine(1, 1, () => status.value !== 0);
  }
  Atomics.store(seen, 2, 1);
  t.is(await Promise.race([ended, failed]), 0);
  t.true(Atomics.load(seen, 1) >= raised, `${Atomics.load(seen, 1)} taken, ${raised} apart`);
  t.is(status.value, 0);
  t.is(Atomics.load(seen, 0), 0, 'the line is down when nothing is left');
  status.add(2);
  shared.updateLine(1, 1, () => status.value !== 0);
  t.is(Atomics.load(seen, 0), 1);
});
