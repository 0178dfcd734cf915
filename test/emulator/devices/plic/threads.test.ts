import { Worker } from 'node:worker_threads';
import test from 'ava';
import { Plic } from '../../../../emulator/devices/plic/mod.ts';
import { RecordedSignals, sharedWords } from '../../../macros/platform.ts';

const ROUNDS = 3000;

test('Plic: a device thread that raises and a hart thread that claims lose no interrupt', async (t) => {
  const words = sharedWords(Plic.WORDS);
  // 0 the device's request, 1 what the hart has served
  const mailbox = sharedWords(2);
  const plicUrl = new URL('../../../../emulator/devices/plic/mod.ts', import.meta.url).href;
  const macrosUrl = new URL('../../../macros/platform.ts', import.meta.url).href;
  const source = `
    const { workerData: { words, mailbox } } = require('node:worker_threads');
    Promise.all([import(${JSON.stringify(plicUrl)}), import(${JSON.stringify(macrosUrl)})]).then(([{ Plic }, { RecordedSignals }]) => {
      const line = new Plic(words, new RecordedSignals(1)).line(7);
      for (let round = 1; round <= ${ROUNDS}; round++) {
        Atomics.store(mailbox, 0, round);
        line.set(true);
        while (Atomics.load(mailbox, 1) !== round) Atomics.wait(mailbox, 1, round - 1, 5);
        line.set(false);
      }
    });`;
  const plic = new Plic(words, new RecordedSignals(1));
  plic.write(4 * 7, 4, 1);
  plic.write(0x2080, 4, 1 << 7);
  const worker = new Worker(source, { eval: true, workerData: { words, mailbox } });
  const failed = new Promise<never>((_, reject) => worker.on('error', reject));
  const ended = new Promise<number>((resolve) => worker.on('exit', resolve));
  const deadline = performance.now() + 60_000;
  let served = 0;
  let spurious = 0;
  while (served < ROUNDS && performance.now() < deadline) {
    const source = plic.read(0x20_1004, 4);
    if (source === 7) {
      // A request that is still high when it is completed comes again: the handler finds nothing to do
      if (Atomics.load(mailbox, 0) === Atomics.load(mailbox, 1)) spurious++;
      else served = Atomics.add(mailbox, 1, 1) + 1;
      Atomics.notify(mailbox, 1);
      plic.write(0x20_1004, 4, 7);
    } else {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  t.is(served, ROUNDS);
  t.is(await Promise.race([ended, failed]), 0);
  t.is(plic.read(0x1000, 4), 0, `nothing is left (${spurious} came again)`);
});
