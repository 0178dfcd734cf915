import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { queryObjects } from 'node:v8';
import test from 'ava';
import { MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { BlockJob, JobControl, JobDisk, type JobWork } from '../../../../services/nbd/jobs/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-jobs-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const BYTES = 1 << 20;

function target(name: string): { path: string; format: string } {
  const path = join(directory, name);
  writeFileSync(path, '');
  truncateSync(path, BYTES);
  return { path, format: 'raw' };
}

test('JobControl: of two jobs that begin at the same moment, with one id or on one disk, one is refused', async (t) => {
  const disks = new Map(['a', 'b'].map((id) => [id, new JobDisk(new MemoryImage(BYTES))]));
  const control = new JobControl(
    (id) => disks.get(id)!,
    () => {},
  );
  const start = (job: string, disk: string, name: string): Promise<object> =>
    control.start({ job, disk, type: 'mirror', sync: 'full', target: target(name) });
  const sameDisk = await Promise.allSettled([start('one', 'a', 'a1'), start('two', 'a', 'a2')]);
  t.deepEqual(
    sameDisk.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  const sameId = await Promise.allSettled([start('three', 'b', 'b1'), start('three', 'b', 'b2')]);
  t.deepEqual(
    sameId.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  t.deepEqual(
    control.query().map(({ device }) => device),
    ['one', 'three'],
  );
  await control.close();
  t.deepEqual(control.query(), []);
  await t.throwsAsync(control.start({ job: 'one', disk: 'a', type: 'mirror', sync: 'none', target: {} }));
  await start('one', 'a', 'a3');
  await control.close();
});

test.serial('a job that follows its disk for long keeps nothing of each look at it', async (t) => {
  let looks = 0;
  const counts: number[] = [];
  const done = Promise.withResolvers<void>();
  const work: JobWork = {
    type: 'mirror',
    lengthBytes: 0,
    follows: true,
    async run() {},
    async follow() {
      looks++;
      if (looks === 10 || looks === 110) counts.push(queryObjects(Promise, { format: 'count' }) as unknown as number);
      if (looks === 110) done.resolve();
      return false;
    },
    async finish() {},
    async close() {},
  };
  const job = new BlockJob('j', work, { speed: 0, emit: () => {} });
  await done.promise;
  job.cancel(true);
  await job.done;
  t.true(counts[1]! - counts[0]! < 50, `${counts[0]} promises, then ${counts[1]}`);
});
