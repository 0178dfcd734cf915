import test from 'ava';
import { Aclint } from '../../emulator/devices/aclint/mod.ts';
import type { MmioDevice } from '../../emulator/devices/device.ts';
import { FwCfg } from '../../emulator/devices/fw_cfg/mod.ts';
import { GoldfishRtc } from '../../emulator/devices/goldfish_rtc/mod.ts';
import { Plic } from '../../emulator/devices/plic/mod.ts';
import { Uart16550 } from '../../emulator/devices/uart16550/mod.ts';
import * as map from '../../emulator/machine/memory_map.ts';
import { GuestMemory } from '../../emulator/memory/guest_memory.ts';
import { FakeClock, RecordedLine, RecordedSignals, sharedWords } from '../../test/macros/platform.ts';
import { type Access, firstDifference, qemuPresent, randomSource, runOnDevice, runOnQemu } from './qtest.ts';

const ROUNDS = 3000;

/** Random accesses by a table of (offset, how a value is made); all reads also follow at the end */
function randomAccesses(
  seed: number,
  size: 1 | 4,
  readable: readonly number[],
  writable: readonly (readonly [number, (random: (below: number) => number) => number])[],
): Access[] {
  const random = randomSource(seed);
  const accesses: Access[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    if (random(2) === 0) {
      accesses.push({ kind: 'read', offset: readable[random(readable.length)]!, size });
    } else {
      const [offset, value] = writable[random(writable.length)]!;
      accesses.push({ kind: 'write', offset, size, value: value(random) >>> 0 });
    }
  }
  for (const offset of readable) accesses.push({ kind: 'read', offset, size });
  return accesses;
}

const any32 = (random: (below: number) => number) => random(2 ** 32);

test('Plic answers random register accesses as QEMU does', async (t) => {
  if (!qemuPresent(t)) return;
  const sources = Array.from({ length: 94 }, (_, index) => 4 * (index + 1));
  const contexts = [0, 1, 2, 3];
  const registers = [
    ...sources,
    // Bit 0 is no source; QEMU keeps it
    ...contexts.flatMap((context) => [0x2084 - 0x80 + 0x80 * context, 0x2088 - 0x80 + 0x80 * context]),
    ...contexts.map((context) => 0x20_0000 + 0x1000 * context),
  ];
  const readable = [...registers, 0x1000, 0x1004, 0x1008, ...contexts.map((context) => 0x20_0004 + 0x1000 * context)];
  const completes = contexts.map((context) => [0x20_0004 + 0x1000 * context, any32] as const);
  const accesses = randomAccesses(1, 4, readable, [
    ...registers.map((offset) => [offset, any32] as const),
    ...completes,
  ]);
  const plic = new Plic(sharedWords(Plic.WORDS), new RecordedSignals(2));
  t.is(firstDifference(accesses, await runOnQemu(map.PLIC.base, accesses), runOnDevice(plic, accesses)), undefined);
});

test('Aclint answers random accesses of msip and mtimecmp as QEMU does', async (t) => {
  if (!qemuPresent(t)) return;
  const registers = [0, 4, 0x4000, 0x4004, 0x4008, 0x400c];
  const accesses = randomAccesses(
    2,
    4,
    registers,
    registers.map((offset) => [offset, any32] as const),
  );
  // QEMU starts mtimecmp at 0; the specification leaves it open
  const first: Access[] = registers.map((offset) => ({ kind: 'write', offset, size: 4, value: 1 }));
  const all = [...first, ...accesses];
  const aclint = new Aclint(sharedWords(Aclint.WORDS), new RecordedSignals(2), new FakeClock());
  aclint.reset();
  t.is(firstDifference(all, await runOnQemu(map.CLINT.base, all), runOnDevice(aclint, all)), undefined);
});

test('GoldfishRtc answers random accesses of its alarm as QEMU does', async (t) => {
  if (!qemuPresent(t)) return;
  // Alarms of the year 2200 and later, so that none rings
  const accesses = randomAccesses(
    3,
    4,
    [0x08, 0x0c, 0x10, 0x18, 0x20],
    [
      [0x08, any32],
      [0x0c, (random) => 0x7000_0000 + random(2 ** 24)],
      [0x10, any32],
      [0x14, any32],
      [0x1c, any32],
    ],
  );
  const all: Access[] = [{ kind: 'write', offset: 0x0c, size: 4, value: 0x7000_0000 }, ...accesses];
  const clock = new FakeClock();
  const rtc = new GoldfishRtc(sharedWords(GoldfishRtc.WORDS), new RecordedLine(), clock);
  t.is(firstDifference(all, await runOnQemu(map.RTC.base, all), runOnDevice(rtc, all)), undefined);
});

test('Uart16550 answers random register accesses as QEMU does', async (t) => {
  if (!qemuPresent(t)) return;
  // Without loopback, where QEMU differs from the data sheet: no modem deltas, and an empty receiver reads its last
  // byte again. Interrupts, line status, FIFO control and divisor are compared in every order.
  const byte = (random: (below: number) => number) => random(256);
  const accesses = randomAccesses(
    4,
    1,
    [0, 1, 2, 3, 4, 5, 7],
    [
      [0, byte],
      [1, byte],
      [2, byte],
      [3, byte],
      [4, (random) => random(16)],
      [7, byte],
    ],
  );
  const uart = new Uart16550(sharedWords(Uart16550.WORDS), new RecordedLine());
  uart.reset();
  t.is(firstDifference(accesses, await runOnQemu(map.UART0.base, accesses), runOnDevice(uart, accesses)), undefined);
});

test('FwCfg gives the items that QEMU gives', async (t) => {
  if (!qemuPresent(t)) return;
  const item = (key: number, bytes: number): Access[] => [
    { kind: 'write', offset: 8, size: 2, value: ((key & 0xff) << 8) | (key >>> 8) },
    ...Array.from({ length: bytes }, (): Access => ({ kind: 'read', offset: 0, size: 1 })),
  ];
  const accesses: Access[] = [
    // Signature, id, uuid, harts, nothing
    ...item(0, 6),
    ...item(1, 6),
    ...item(2, 17),
    ...item(5, 4),
    ...item(0x1234, 4),
    { kind: 'write', offset: 8, size: 2, value: 0 },
    { kind: 'read', offset: 0, size: 4 },
    { kind: 'read', offset: 0x10, size: 4 },
    { kind: 'read', offset: 0x14, size: 4 },
  ];
  const memory = new GuestMemory(new Uint8Array(4096), new Uint8Array(1));
  const device: MmioDevice = new FwCfg(memory, { ramBytes: 64 * 2 ** 20, harts: 2 });
  t.is(firstDifference(accesses, await runOnQemu(map.FW_CFG.base, accesses), runOnDevice(device, accesses)), undefined);
});
