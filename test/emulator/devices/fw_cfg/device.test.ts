import test from 'ava';
import { FW_CFG_KEY, FW_CFG_LIMITS, FwCfg } from '../../../../emulator/devices/fw_cfg/mod.ts';
import { GuestMemory, RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { StateError } from '../../../../emulator/state/state.ts';

const RAM_BYTES = 16 * 4096;

function make() {
  const memory = new GuestMemory(new Uint8Array(RAM_BYTES), new Uint8Array(16));
  return { memory, fwCfg: new FwCfg(memory, { ramBytes: RAM_BYTES, harts: 4 }) };
}

function select(fwCfg: FwCfg, key: number): void {
  fwCfg.write(8, 2, ((key & 0xff) << 8) | (key >>> 8));
}

function readBytes(fwCfg: FwCfg, count: number): number[] {
  return Array.from({ length: count }, () => fwCfg.read(0, 1));
}

/** Runs one DMA request through a structure at the start of RAM; gives the control word of the answer. */
function dma(
  memory: GuestMemory,
  fwCfg: FwCfg,
  control: number,
  length: number,
  address: bigint,
  at = RAM_BASE,
): number {
  const structure = new DataView(new ArrayBuffer(16));
  structure.setUint32(0, control);
  structure.setUint32(4, length);
  structure.setBigUint64(8, address);
  memory.write(at, new Uint8Array(structure.buffer));
  const pointer = new DataView(new ArrayBuffer(8));
  pointer.setBigUint64(0, BigInt(at));
  fwCfg.write(0x10, 4, pointer.getUint32(0, true));
  fwCfg.write(0x14, 4, pointer.getUint32(4, true));
  return new DataView(memory.read(at, 4).buffer).getUint32(0);
}

test('FwCfg: signature, id, RAM and harts are where QEMU has them', (t) => {
  const { fwCfg } = make();
  select(fwCfg, FW_CFG_KEY.signature);
  t.is(fwCfg.read(0, 4), 0x554d_4551);
  select(fwCfg, FW_CFG_KEY.id);
  t.deepEqual(readBytes(fwCfg, 4), [3, 0, 0, 0]);
  select(fwCfg, FW_CFG_KEY.ramSize);
  t.is(fwCfg.read(0, 4), RAM_BYTES);
  t.is(fwCfg.read(4, 4), 0, 'a 64-bit load is two halves');
  select(fwCfg, FW_CFG_KEY.harts);
  t.is(fwCfg.read(0, 2), 4);
  t.is(fwCfg.read(0x10, 4), 0x554d_4551);
  t.is(fwCfg.read(0x14, 4), 0x4746_4320);
});

test('FwCfg: files are listed with size, key and name, and read through their key', (t) => {
  const { fwCfg } = make();
  fwCfg.addFile('etc/one', Uint8Array.of(1, 2, 3));
  fwCfg.addFile('opt/two', Uint8Array.of(9));
  select(fwCfg, FW_CFG_KEY.fileDirectory);
  t.deepEqual(readBytes(fwCfg, 4), [0, 0, 0, 2]);
  const [first, second] = [readBytes(fwCfg, 64), readBytes(fwCfg, 64)];
  t.deepEqual(first.slice(0, 8), [0, 0, 0, 3, 0, 0x20, 0, 0]);
  t.is(String.fromCharCode(...first.slice(8)).replace(/\0+$/, ''), 'etc/one');
  t.deepEqual(second.slice(0, 8), [0, 0, 0, 1, 0, 0x21, 0, 0]);
  select(fwCfg, 0x20);
  t.deepEqual(readBytes(fwCfg, 5), [1, 2, 3, 0, 0], 'zero beyond the end');
});

test('FwCfg: DMA selects, skips and reads, with zeroes beyond the end', (t) => {
  const { memory, fwCfg } = make();
  fwCfg.addFile('etc/file', Uint8Array.of(10, 11, 12, 13));
  const target = BigInt(RAM_BASE + 0x100);
  memory.fill(RAM_BASE + 0x100, 8, 0xff);
  t.is(dma(memory, fwCfg, (0x20 << 16) | 0x08, 0, 0n), 0);
  t.is(dma(memory, fwCfg, 0x04, 1, 0n), 0);
  t.is(dma(memory, fwCfg, 0x02, 5, target), 0);
  t.deepEqual([...memory.read(RAM_BASE + 0x100, 6)], [11, 12, 13, 0, 0, 0xff]);
  t.is(dma(memory, fwCfg, (0x20 << 16) | 0x0a, 2, target), 0);
  t.deepEqual([...memory.read(RAM_BASE + 0x100, 2)], [10, 11]);
});

test('FwCfg: a guest whose DMA leaves RAM, is too long or writes gets the error bit', (t) => {
  const { memory, fwCfg } = make();
  const end = BigInt(RAM_BASE + RAM_BYTES);
  for (const [length, address] of [
    [4, 0n],
    [4, BigInt(RAM_BASE) - 1n],
    [2, end - 1n],
    [0xffff_ffff, BigInt(RAM_BASE)],
    [FW_CFG_LIMITS.dmaBytes + 1, BigInt(RAM_BASE)],
    [4, 1n << 60n],
    [4, 0xffff_ffff_ffff_fffen],
  ] as const) {
    t.is(dma(memory, fwCfg, 0x02, length, address), 1, `${length} ${address}`);
  }
  t.is(dma(memory, fwCfg, 0x10, 1, BigInt(RAM_BASE)), 1, 'items are read-only');
});

test('FwCfg: a guest whose DMA structure is outside of RAM, or cut by its end, changes nothing', (t) => {
  const { memory, fwCfg } = make();
  for (const address of [0n, 0x1000n, BigInt(RAM_BASE + RAM_BYTES - 8), 0xffff_ffff_ffff_fff0n, 1n << 53n]) {
    const pointer = new DataView(new ArrayBuffer(8));
    pointer.setBigUint64(0, address);
    t.notThrows(() => {
      fwCfg.write(0x10, 4, pointer.getUint32(0, true));
      fwCfg.write(0x14, 4, pointer.getUint32(4, true));
    });
  }
  t.true(memory.read(RAM_BASE, RAM_BYTES).every((byte) => byte === 0));
});

test('FwCfg: a DMA whose target is its own structure ends, and the answer has the last word', (t) => {
  const { memory, fwCfg } = make();
  select(fwCfg, FW_CFG_KEY.signature);
  t.is(dma(memory, fwCfg, 0x02, 16, BigInt(RAM_BASE)), 0);
});

test('FwCfg: a guest that skips for ever, selects nonsense or writes data reads zero', (t) => {
  const { memory, fwCfg } = make();
  for (let round = 0; round < 3; round++) t.is(dma(memory, fwCfg, 0x04, 0xffff_ffff, 0n), 0);
  t.is(fwCfg.read(0, 4), 0);
  t.deepEqual((fwCfg.saveState() as { position: number }).position, 0xffff_ffff);
  select(fwCfg, 0xffff);
  t.is(fwCfg.read(0, 4), 0);
  fwCfg.write(0, 1, 0x55);
  fwCfg.write(8, 1, 0);
  fwCfg.write(8, 4, 0);
  t.is(fwCfg.read(0, 1), 0);
  t.is(fwCfg.read(8, 2), 0);
});

test('FwCfg: names and counts beyond the limits are refused', (t) => {
  const { fwCfg } = make();
  t.throws(() => fwCfg.addFile('', new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => fwCfg.addFile('x'.repeat(56), new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => fwCfg.addFile('a\0b', new Uint8Array(0)), { instanceOf: RangeError });
  for (let index = 0; index < FW_CFG_LIMITS.files; index++) fwCfg.addFile(`f${index}`, new Uint8Array(0));
  t.throws(() => fwCfg.addFile('f0', new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => fwCfg.addFile('one more', new Uint8Array(0)), { instanceOf: RangeError });
  t.throws(() => fwCfg.setItem(0x1_0000, new Uint8Array(0)), { instanceOf: RangeError });
});

test('FwCfg: state carries the place in the item', (t) => {
  const a = make();
  select(a.fwCfg, FW_CFG_KEY.signature);
  a.fwCfg.read(0, 2);
  const b = make();
  b.fwCfg.prepareState(a.fwCfg.saveState(), 1)();
  t.is(b.fwCfg.read(0, 2), 0x554d);
  b.fwCfg.reset();
  t.is(b.fwCfg.read(0, 1), 0x51);
  t.throws(() => b.fwCfg.prepareState({ key: 0x1_0000, position: 0, dmaHigh: 0 }, 1), { instanceOf: StateError });
});
