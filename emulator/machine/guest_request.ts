import type { SharedHartSignals } from './hart_signals.ts';
import { ATTENTION_PAUSE, GUEST_EXIT_CODE, GUEST_NONE, GUEST_REQUEST } from './words.ts';

/**
 * The guest ended or reset itself, on the thread of `hart`. The hart goes no further than its next look at
 * requests; the main thread stops the others. The first request stands: what follows it is ignored.
 */
export function requestFromGuest(signals: SharedHartSignals, hart: number, request: number, exitCode: number): void {
  const { words } = signals;
  if (Atomics.load(words, GUEST_REQUEST >> 2) !== GUEST_NONE) return;
  Atomics.store(words, GUEST_EXIT_CODE >> 2, exitCode);
  Atomics.store(words, GUEST_REQUEST >> 2, request);
  signals.request(hart, ATTENTION_PAUSE);
  signals.ringMain();
}
