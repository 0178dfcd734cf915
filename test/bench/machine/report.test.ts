import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { formatTable, writeJson } from '../../../bench/machine/report.ts';

test('formatTable() has a column for every key, texts left and figures right, and ends no line with blanks', (t) => {
  const table = formatTable([
    { name: 'hash', ours: 5, must: '1 (1.1)' },
    { name: 'a longer one', ours: 1234, verdict: 'met' },
  ]);
  t.deepEqual(table.split('\n'), [
    'name          ours     must  verdict',
    'hash             5  1 (1.1)',
    'a longer one  1234               met',
  ]);
});

test('formatTable() shows 0, and nothing for what is not known', (t) => {
  t.is(formatTable([{ name: 'x', ours: 0, theirs: undefined }]), 'name  ours  theirs\nx        0');
});

test('writeJson() keeps host, options and every sample', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-bench-test-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'out.json');
  writeJson(path, { rounds: 5 }, [{ title: 'one', rows: [{ name: 'x', ours: 1 }], samples: { ours: [1, 2] } }]);
  const read = JSON.parse(readFileSync(path, 'utf8'));
  t.is(read.options.rounds, 5);
  t.deepEqual(read.sections[0].samples.ours, [1, 2]);
  t.is(typeof read.host.processors, 'number');
});
