import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { openDemoDisk, stateFolder } from '../../../cli/debian/demo_disk.ts';

const folder = mkdtempSync(join(tmpdir(), 'caisson-state-'));
test.after.always(() => rmSync(folder, { recursive: true }));

function prepared(): string {
  const state = mkdtempSync(join(folder, 'state-'));
  writeFileSync(join(state, 'debian.img'), 'a disk');
  return state;
}

test('openDemoDisk() keeps the disk of the last run and gives the lock back', async (t) => {
  const state = prepared();
  {
    using disk = await openDemoDisk(state);
    t.is(disk.file, join(state, 'debian.img'));
    t.is(readFileSync(disk.file, 'utf8'), 'a disk');
    t.true(existsSync(`${disk.file}.lock`));
  }
  t.false(existsSync(join(state, 'debian.img.lock')));
});

test('openDemoDisk() never gives one disk to two machines', async (t) => {
  const state = prepared();
  using first = await openDemoDisk(state);
  const second = await openDemoDisk(state).catch((error: unknown) => error as Error);
  if (second instanceof Error) {
    t.log(`SKIPPED: ${second.message}`);
    t.pass();
    return;
  }
  t.not(second.file, first.file);
  t.regex(second.notice ?? '', /goes when it ends/);
  second[Symbol.dispose]();
  t.false(existsSync(second.file));
  t.true(existsSync(`${first.file}.lock`), 'the first one still has its lock');
});

test('openDemoDisk() takes over the lock of a process that is gone', async (t) => {
  const state = prepared();
  writeFileSync(join(state, 'debian.img.lock'), '4194305\n');
  using disk = await openDemoDisk(state);
  t.is(disk.file, join(state, 'debian.img'));
});

test('stateFolder() follows XDG_STATE_HOME', (t) => {
  t.is(stateFolder({ XDG_STATE_HOME: '/var/me' }), '/var/me/caisson');
  t.regex(stateFolder({}), /\/\.local\/state\/caisson$/);
});
