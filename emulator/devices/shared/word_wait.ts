/** How a wait ended: the word changed (or may have), or the time was up. */
export type WordWait = 'changed' | 'timed-out';

/** Where the platform cannot wait without blocking, it looks again after this, in `ms` */
const FALLBACK_POLL_MS = 20;
/** The longest that a timer is set for; the caller loops, in `ms` */
const MAX_WAIT_MS = 60_000;

/**
 * Waits without blocking until a shared word is no longer `seen`, or someone notifies it, or `timeoutMs` passes.
 * May end early: callers look at the state again, in a loop.
 */
export async function waitForWord(
  words: Int32Array,
  index: number,
  seen: number,
  timeoutMs = MAX_WAIT_MS,
): Promise<WordWait> {
  const limitMs = Math.min(Math.max(timeoutMs, 0), MAX_WAIT_MS);
  // Browsers got it years after Atomics.wait
  if (typeof Atomics.waitAsync === 'function') {
    const wait = Atomics.waitAsync(words, index, seen, limitMs);
    const outcome = wait.async ? await wait.value : wait.value;
    return outcome === 'timed-out' ? 'timed-out' : 'changed';
  }
  if (Atomics.load(words, index) === seen) {
    await new Promise<void>((resolve) => setTimeout(resolve, Math.min(limitMs, FALLBACK_POLL_MS)));
  }
  return Atomics.load(words, index) === seen ? 'timed-out' : 'changed';
}

/** In `ms`: above 0, which would not wait at all */
const A_MOMENT_MS = 0.001;

/**
 * Lets the event loop have one turn: I/O and timers that are due. A promise that is settled already would not, nor
 * would a timer before a millisecond has passed. `words[index]` must be `value`, and nobody notify it.
 */
export async function yieldToEventLoop(words: Int32Array, index: number, value: number): Promise<void> {
  await waitForWord(words, index, value, A_MOMENT_MS);
}
