import type { FinisherRequest } from '../devices/syscon/mod.ts';
import type { SharedHartSignals } from './hart_signals.ts';
import {
  ATTENTION_PAUSE,
  GUEST_EXIT_CODE,
  GUEST_FAILURE,
  GUEST_NONE,
  GUEST_REQUEST,
  GUEST_RESET,
  GUEST_SHUTDOWN,
} from './words.ts';

/** The same, by a write to the test device. */
export function finishFromGuest(signals: SharedHartSignals, hart: number, request: FinisherRequest): void {
  const kind = request.kind === 'reset' ? GUEST_RESET : request.code === 0 ? GUEST_SHUTDOWN : GUEST_FAILURE;
  requestFromGuest(signals, hart, kind, request.kind === 'reset' ? 0 : request.code);
}

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
