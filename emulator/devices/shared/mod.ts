export { SpinLock } from './spin_lock.ts';
export { type WordWait, waitForWord, yieldToEventLoop } from './word_wait.ts';
