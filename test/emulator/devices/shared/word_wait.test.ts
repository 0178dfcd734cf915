import test, { type ExecutionContext } from 'ava';
import { waitForWord, yieldToEventLoop } from '../../../../emulator/devices/shared/mod.ts';
import { sharedWords } from '../../../macros/platform.ts';

/** A wait alone does not keep a process running. */
function stayAlive(t: ExecutionContext): void {
  const timer = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(timer));
}

test('waitForWord() ends at once for a word that has changed, and by notification or time for one that has not', async (t) => {
  stayAlive(t);
  const words = sharedWords(1);
  t.is(await waitForWord(words, 0, 1, 5000), 'changed');
  t.is(await waitForWord(words, 0, 0, 5), 'timed-out');
  const waiting = waitForWord(words, 0, 0, 5000);
  setTimeout(() => {
    Atomics.store(words, 0, 7);
    Atomics.notify(words, 0);
  }, 2);
  t.is(await waiting, 'changed');
});

test('yieldToEventLoop() lets timers run that are due, which a settled promise does not', async (t) => {
  stayAlive(t);
  const words = sharedWords(1);
  let ran = false;
  setTimeout(() => {
    ran = true;
  }, 1);
  const until = performance.now() + 5;
  while (performance.now() < until);
  await waitForWord(words, 0, 1);
  t.false(ran, 'only microtasks had their turn');
  for (let turn = 0; turn < 3 && !ran; turn++) await yieldToEventLoop(words, 0, 0);
  t.true(ran);
});
