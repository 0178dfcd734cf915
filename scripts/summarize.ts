// `node scripts/run.mjs scripts/summarize.ts FOLDER`: reads NAME.log and NAME.status of each step of .ci/run, and ends
// with one plain line. Steps that are no test runs (types, lint) count only when they fail.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { countResults, type Results } from './test_results.ts';

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error('Usage: summarize.ts FOLDER');
const total: Results = { passed: 0, failed: 0, skipped: 0 };
const names = readdirSync(folder).filter((name) => name.endsWith('.status'));
for (const file of names.sort()) {
  const name = file.slice(0, -'.status'.length);
  const status = Number(readFileSync(join(folder, file), 'utf8'));
  const results = countResults(readFileSync(join(folder, `${name}.log`), 'utf8'), status);
  total.passed += results.passed;
  total.failed += results.failed;
  total.skipped += results.skipped;
  if (results.failed > 0) process.stdout.write(`${name}: ${results.failed} failed, exit status ${status}\n`);
  for (const reason of results.reasons ?? []) process.stdout.write(`${name}: skipped: ${reason}\n`);
}
if (names.length === 0) total.failed += 1; // nothing ran at all
process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
process.exitCode = total.failed > 0 ? 1 : 0;
