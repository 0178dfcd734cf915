import { Worker } from 'node:worker_threads';
import test from 'ava';
import { SpinLock, waitForWord } from '../../../../emulator/devices/shared/mod.ts';
import { sharedWords } from '../../../macros/platform.ts';

test('SpinLock: threads that count together lose nothing', async (t) => {
  const words = sharedWords(2);
  const rounds = 20_000;
  const url = new URL('../../../../emulator/devices/shared/mod.ts', import.meta.url).href;
  const source = `
    const { workerData } = require('node:worker_threads');
    import(${JSON.stringify(url)}).then(({ SpinLock }) => {
      const lock = new SpinLock(workerData, 0);
      // Not atomic on purpose: only the lock keeps the count
      for (let i = 0; i < ${rounds}; i++) lock.run(() => { workerData[1] = workerData[1] + 1; });
    });`;
  const exits = [0, 1].map(
    () =>
      new Promise<number>((resolve, reject) => {
        const worker = new Worker(source, { eval: true, workerData: words });
        worker.on('error', reject);
        worker.on('exit', resolve);
      }),
  );
  t.deepEqual(await Promise.all(exits), [0, 0]);
  t.is(words[1], 2 * rounds);
  t.is(words[0], 0);
});

test('SpinLock: a section that throws gives the lock back', (t) => {
  const words = sharedWords(1);
  const lock = new SpinLock(words, 0);
  t.throws(() =>
    lock.run(() => {
      throw new RangeError('inside');
    }),
  );
  t.is(
    lock.run(() => 7),
    7,
  );
});

test('waitForWord(): ends on a change, on time, and at once when the word has changed already', async (t) => {
  const words = sharedWords(1);
  t.is(await waitForWord(words, 0, 1), 'changed');
  t.is(await waitForWord(words, 0, 0, 5), 'timed-out');
  const waiting = waitForWord(words, 0, 0);
  Atomics.add(words, 0, 1);
  Atomics.notify(words, 0);
  t.is(await waiting, 'changed');
});
