export interface Results {
  passed: number;
  failed: number;
  skipped: number;
  /** Why tests were skipped, each reason once */
  reasons?: string[];
}

/**
 * Counts what ava's default reporter says. A test that passed with a log line `SKIPPED: reason` was skipped; a run that
 * ended badly has at least one failure, whatever its lines say.
 */
export function countResults(log: string, exitStatus: number): Results {
  const results: Required<Results> = { passed: 0, failed: 0, skipped: 0, reasons: [] };
  let counted = false; // whether the test of the last line still counts as passed
  for (const raw of log.split('\n')) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are escape sequences
    const line = raw.replace(/\x1b\[[0-9;]*m/g, '').trim();
    if (/^[✔√] /.test(line)) {
      results.passed += 1;
      counted = true;
    } else if (/^[✘✖×] \[fail\]/.test(line)) {
      results.failed += 1;
      counted = false;
    } else if (/^- \[skip\]/.test(line)) {
      results.skipped += 1;
      counted = false;
    } else if (/^[✘✖×] .*(?:exited with a non-zero exit code|timed out)/i.test(line)) {
      results.failed += 1;
      counted = false;
    } else {
      const reason = /^[ℹi] SKIPPED: (.*)$/.exec(line)?.[1];
      if (reason !== undefined && counted) {
        results.passed -= 1;
        results.skipped += 1;
        counted = false; // a second line of the same test does not count again
      }
      if (reason !== undefined && !results.reasons.includes(reason)) results.reasons.push(reason);
    }
  }
  if (exitStatus !== 0 && results.failed === 0) results.failed = 1;
  return results;
}
