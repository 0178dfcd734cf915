import { readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';

/** The least: 0 would mean the default */
const EXACT = '1';

/**
 * Starts a process whose threads wait as long as they ask for. Linux lets a timer be late by its thread's slack (prctl(2)
 * PR_SET_TIMERSLACK), 50 µs unless told otherwise, and a new process takes over that of the thread that starts it: so ours
 * is changed meanwhile. A guest's timer ticks are late by that much less. Elsewhere than on Linux nothing is done.
 */
export function withExactTimers<Started>(start: () => Started): Started {
  const before = exchange(EXACT);
  try {
    return start();
  } finally {
    if (before !== undefined) exchange(before);
  }
}

/** What was there; undefined where it cannot be changed. */
function exchange(slack: string): string | undefined {
  try {
    // Of this thread, which may be a worker: /proc/PID/task/TID has no such file, /proc/TID has.
    const file = `/proc/${basename(readlinkSync('/proc/thread-self'))}/timerslack_ns`;
    const before = readFileSync(file, 'latin1').trim();
    writeFileSync(file, slack);
    return before;
  } catch {
    return undefined;
  }
}
