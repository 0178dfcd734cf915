export { SpinLock } from './spin_lock.ts';
export { type WordWait, waitForWord } from './word_wait.ts';
