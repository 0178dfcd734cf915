import { Worker } from 'node:worker_threads';
import test from 'ava';
import { HART_DOORBELL, HART_MIP } from '../../../emulator/kernel/assembly/hart_layout.ts';
import { SharedHartSignals } from '../../../emulator/machine/hart_signals.ts';
import { planMemory } from '../../../emulator/memory/layout.ts';

function make(own?: number) {
  const layout = planMemory(2, 1 << 20);
  const buffer = new SharedArrayBuffer(layout.code(0).pages);
  const signals = new SharedHartSignals(buffer, layout, own);
  return { signals, at: (hart: number, offset: number) => Atomics.load(signals.words, signals.index(hart, offset)) };
}

test('setPending() wakes a hart for what is new, and leaves other pins as they are', (t) => {
  const { signals, at } = make();
  signals.setPending(1, 7, true);
  signals.setPending(1, 9, true);
  t.is(at(1, HART_MIP), 0x280);
  t.is(at(1, HART_DOORBELL), 2);
  signals.setPending(1, 7, true);
  t.is(at(1, HART_DOORBELL), 2, 'it knows already');
  signals.setPending(1, 7, false);
  signals.setPending(1, 7, false);
  t.is(at(1, HART_MIP), 0x200);
  t.is(at(0, HART_MIP), 0);
});

test('kick() rings the doorbell of the own hart too: it may be about to sleep', (t) => {
  const { signals, at } = make(0);
  signals.kick(0);
  t.is(at(0, HART_DOORBELL), 1);
});

test('kick() wakes a hart that sleeps on another thread', async (t) => {
  const { signals } = make(0);
  const worker = new Worker(
    `const { parentPort, workerData: { words, index } } = require('node:worker_threads');
     parentPort.postMessage('sleeping');
     parentPort.postMessage(Atomics.wait(words, index, 0, 20000));`,
    { eval: true, workerData: { words: signals.words, index: signals.index(1, HART_DOORBELL) } },
  );
  t.teardown(() => worker.terminate());
  const woken = await new Promise((resolve) => {
    worker.on('message', (message) => {
      if (message === 'sleeping') setTimeout(() => signals.kick(1), 50);
      else resolve(message);
    });
  });
  t.is(woken, 'ok');
});
