import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import test from 'ava';
import type { MmioDevice } from '../../../emulator/devices/device.ts';
import { waitForWord } from '../../../emulator/devices/shared/mod.ts';
import { HART_MAILBOX } from '../../../emulator/kernel/assembly/hart_layout.ts';
import { Bus } from '../../../emulator/machine/bus.ts';
import { SharedHartSignals } from '../../../emulator/machine/hart_signals.ts';
import { MailboxServer, Patience, serveMailboxes } from '../../../emulator/machine/mailbox.ts';
import { MAIN_DOORBELL } from '../../../emulator/machine/words.ts';
import { planMemory } from '../../../emulator/memory/layout.ts';
import type { MailboxAccess } from '../../fixtures/mailbox_worker.ts';

const HARTS = 2;
const RAM_BYTES = 1 << 20;
const BASE = 0x4_0000_0000; // needs the high half of the address
const layout = planMemory(HARTS, RAM_BYTES);

/** Keeps what is written, by offset */
class Registers implements MmioDevice {
  readonly name = 'registers';
  readonly values = new Map<number, number>();

  read(offset: number): number {
    return this.values.get(offset) ?? 0;
  }

  write(offset: number, _size: number, value: number): void {
    this.values.set(offset, value);
  }
}

test('Mailboxes carry accesses of harts on other threads to devices on this one, in order, with faults', async (t) => {
  t.timeout(20_000);
  const buffer = new SharedArrayBuffer(layout.rom);
  const signals = new SharedHartSignals(buffer, layout);
  const device = new Registers();
  const bus = new Bus([{ range: { base: BASE, size: 0x1000 }, device }]);
  const accesses = (hart: number): MailboxAccess[] => [
    ...Array.from({ length: 100 }, (_, i) => ({
      address: BASE + hart * 0x400 + 4 * i,
      size: 4,
      value: 0x8000_0000 + i,
    })),
    ...Array.from({ length: 100 }, (_, i) => ({ address: BASE + hart * 0x400 + 4 * i, size: 4 })),
    { address: BASE - 4, size: 4 },
    { address: BASE + 0xffe, size: 4, value: 1 },
    { address: BASE - 0x4_0000_0000, size: 4 },
    { address: BASE + hart * 0x400, size: 1 },
  ];
  const workers = Array.from(
    { length: HARTS },
    (_, hart) =>
      new Worker(new URL('../../fixtures/mailbox_worker.ts', import.meta.url), {
        workerData: { buffer, harts: HARTS, ramBytes: RAM_BYTES, hart, accesses: accesses(hart) },
      }),
  );
  let waiting = true;
  const answers = Promise.all(workers.map(async (worker) => (await once(worker, 'message'))[0] as unknown[]));
  const serving = (async () => {
    let served = 0;
    while (waiting) {
      const seen = Atomics.load(signals.words, MAIN_DOORBELL >> 2);
      served += serveMailboxes(signals, bus);
      await waitForWord(signals.words, MAIN_DOORBELL >> 2, seen, 50);
    }
    return served;
  })();
  const results = await answers;
  waiting = false;
  const served = await serving;
  for (const result of results) {
    t.deepEqual(result.slice(0, 100), new Array(100).fill(true));
    t.deepEqual(
      result.slice(100, 200),
      Array.from({ length: 100 }, (_, i) => 0x8000_0000 + i),
    );
    t.deepEqual(result.slice(200), [-1, false, -1, 0x8000_0000]);
  }
  t.is(served, HARTS * 204);
  t.is(serveMailboxes(signals, bus), 0, 'nothing is left');
});

/** A mailbox server with a clock of the test's, and hart 0's requests made by hand. */
function server() {
  const signals = new SharedHartSignals(new SharedArrayBuffer(layout.rom), layout);
  const reads: number[] = [];
  const clock = { ms: 1000, looks: 0 };
  let onLook = (): void => {};
  const bus = new Bus([
    {
      range: { base: BASE, size: 0x1000 },
      device: {
        name: 'recorded',
        read: (offset) => {
          reads.push(offset);
          return 0;
        },
        write: () => {},
      },
    },
  ]);
  const mailbox = signals.index(0, HART_MAILBOX);
  const request = (offset: number): void => {
    // State, kind, address, size: as MailboxClient writes them
    signals.words.set([0, (BASE % 2 ** 32) | offset, Math.floor(BASE / 2 ** 32), 4], mailbox + 1);
    Atomics.store(signals.words, mailbox, 1);
  };
  const mailboxes = new MailboxServer(signals, bus, () => {
    clock.looks++;
    onLook();
    return clock.ms;
  });
  return { mailboxes, reads, clock, request, onEachLook: (run: () => void) => (onLook = run) };
}

test('MailboxServer serves a single request and does not look for another', (t) => {
  const { mailboxes, reads, clock, request } = server();
  t.false(mailboxes.serve(), 'nothing waits');
  t.is(clock.looks, 0, 'and no clock is looked at');
  request(8);
  t.false(mailboxes.serve());
  t.deepEqual(reads, [8]);
  t.is(clock.looks, 1);
  clock.ms += 5;
  request(12);
  t.false(mailboxes.serve());
  t.is(clock.looks, 2, 'the one before is long ago');
});

test('MailboxServer looks for the next request in a burst, and no longer than a moment after the last', (t) => {
  const { mailboxes, reads, clock, request, onEachLook } = server();
  request(0);
  mailboxes.serve();
  clock.ms += 0.02;
  request(4);
  const coming = [8, 12];
  onEachLook(() => {
    clock.ms += 0.01;
    const next = coming.shift();
    if (next !== undefined) request(next);
  });
  t.false(mailboxes.serve());
  t.deepEqual(reads, [0, 4, 8, 12]);
  t.true(clock.ms < 1000.2, `${clock.ms} ms`);
});

test('MailboxServer lets others have their turn though a guest asks without end', (t) => {
  const { mailboxes, reads, clock, request, onEachLook } = server();
  request(0);
  mailboxes.serve();
  request(0);
  onEachLook(() => {
    clock.ms += 0.01;
    request(0);
  });
  t.true(mailboxes.serve());
  t.true(reads.length > 50 && reads.length < 150, `${reads.length} in a millisecond of ten microseconds each`);
});

test('Patience: looks that were in vain make it sleep sooner, answers while it looked make it look longer', (t) => {
  const patience = new Patience();
  const fewest = patience.looks;
  patience.learn(10, patience.looks);
  t.is(patience.looks, fewest, 'a main thread that is awake answers at once: nothing to learn');
  let most = fewest;
  for (let answer = 0; answer < 100; answer++) {
    const allowed = patience.looks;
    most = Math.max(most, allowed);
    // The main thread needs 1000 looks to wake
    patience.learn(Math.min(1000, allowed), allowed);
  }
  t.true(most > 1000);
  t.is(patience.looks, most, 'it was tried, and paid');
  for (let answer = 0; answer < 10; answer++) patience.learn(patience.looks, patience.looks);
  t.true(patience.looks === fewest || patience.looks === most, 'back to few, but for the tries');
  let looks = 0;
  for (let answer = 0; answer < 160; answer++) {
    looks += patience.looks;
    patience.learn(patience.looks, patience.looks);
  }
  t.true(looks / 160 < fewest * 6, `${looks / 160} looks for each answer that never comes meanwhile`);
});
