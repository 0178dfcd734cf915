import test, { type ExecutionContext } from 'ava';
import { DirtyBitmap, type DiskImage, MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import {
  BackupWork,
  BlockJob,
  JobDisk,
  type JobEvent,
  type JobWork,
  MirrorWork,
  StreamWork,
} from '../../../../services/nbd/jobs/mod.ts';
import { LogImageFile, randomNumbers } from '../../../fixtures/log_image_file.ts';

const BYTES = 8 << 20;

interface Watched {
  readonly job: BlockJob;
  readonly events: JobEvent[];
  readonly data: object[];
  ready(): Promise<void>;
}

function begin(work: JobWork, speed = 0): Watched {
  const events: JobEvent[] = [];
  const data: object[] = [];
  const ready = Promise.withResolvers<void>();
  const job = new BlockJob('j', work, {
    speed,
    emit: (event, given) => {
      events.push(event);
      data.push(given);
      if (event === 'BLOCK_JOB_READY') ready.resolve();
    },
  });
  return { job, events, data, ready: () => ready.promise };
}

async function contentsOf(image: DiskImage): Promise<Uint8Array> {
  const all = new Uint8Array(image.sizeBytes);
  await image.read(0, all);
  return all;
}

async function filled(seed: number): Promise<{ disk: JobDisk; model: Uint8Array }> {
  const image = new MemoryImage(BYTES);
  const model = new Uint8Array(BYTES);
  const random = randomNumbers(seed);
  for (let at = 0; at < BYTES; at += 100_000) {
    if (random(3) > 0) model.fill(1 + random(255), at, at + 70_000);
  }
  await image.write(0, model);
  return { disk: new JobDisk(image), model };
}

/** A guest that writes until it is stopped; the model has what the disk must hold. */
function guest(disk: JobDisk, model: Uint8Array, seed: number): { stop: () => Promise<number> } {
  const random = randomNumbers(seed);
  let stopped = false;
  const run = async (): Promise<number> => {
    let writes = 0;
    for (; !stopped || writes < 6; writes++) {
      const length = 512 * (1 + random(40));
      const offset = 512 * random((model.length - length) / 512);
      const fill = 1 + random(255);
      model.fill(fill, offset, offset + length);
      const data = new Uint8Array(length).fill(fill);
      if (random(2) === 0 || !disk.writeNow(offset, data)) await disk.write(offset, data);
      // Slower than a job copies: one that follows has to catch up.
      await new Promise((resolve) => setTimeout(resolve, 3));
    }
    return writes;
  };
  const running = run();
  return {
    stop: () => {
      stopped = true;
      return running;
    },
  };
}

async function guestWrote(t: ExecutionContext, writer: ReturnType<typeof guest>): Promise<void> {
  const writes = await writer.stop();
  t.true(writes > 5, `the guest wrote ${writes} times`);
}

test.serial('mirror copies a disk that is written to, and the disk goes on with the copy', async (t) => {
  const { disk, model } = await filled(1);
  const target = new MemoryImage(BYTES);
  const source = disk.image;
  let left: DiskImage | undefined;
  const work = new MirrorWork(disk, target, { sync: 'full', targetIsZero: true }, async (before) => {
    left = before;
  });
  const writer = guest(disk, model, 2);
  const { job, events, ready } = begin(work);
  await ready();
  await new Promise((resolve) => setTimeout(resolve, 50));
  t.is(job.info.status, 'ready');
  job.complete();
  await job.done;
  await guestWrote(t, writer);
  t.is(left, source);
  t.is(disk.image, target);
  t.deepEqual(events, ['BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED']);
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
});

test.serial(
  'mirror that is cancelled when it is ready leaves a whole copy of that moment, the disk where it was',
  async (t) => {
    const { disk, model } = await filled(3);
    const source = disk.image;
    const target = new MemoryImage(BYTES);
    const closed: Uint8Array[] = [];
    const close = target.close.bind(target);
    target.close = async () => {
      closed.push(await contentsOf(target));
      await close();
    };
    const { job, events, ready } = begin(
      new MirrorWork(disk, target, { sync: 'full', targetIsZero: false }, async () => {}),
    );
    await ready();
    job.cancel(false);
    await job.done;
    t.deepEqual(events, ['BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED']);
    t.is(disk.image, source);
    t.is(Buffer.compare(closed[0]!, model), 0);
  },
);

test.serial('mirror that is cancelled before that, or by force, is cancelled', async (t) => {
  const { disk, model } = await filled(4);
  const slow = begin(
    new MirrorWork(disk, new MemoryImage(BYTES), { sync: 'full', targetIsZero: false }, async () => {}),
    1 << 20,
  );
  slow.job.cancel(false);
  await slow.job.done;
  t.deepEqual(slow.events, ['BLOCK_JOB_CANCELLED']);
  const forced = begin(
    new MirrorWork(disk, new MemoryImage(BYTES), { sync: 'none', targetIsZero: false }, async () => {}),
  );
  await forced.ready();
  forced.job.cancel(true);
  await forced.job.done;
  t.deepEqual(forced.events, ['BLOCK_JOB_READY', 'BLOCK_JOB_CANCELLED']);
  await disk.write(0, new Uint8Array(512));
  model.fill(0, 0, 512);
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
});

test.serial('backup keeps the moment of its beginning, whatever the guest writes meanwhile', async (t) => {
  const { disk, model } = await filled(5);
  const before = model.slice();
  const target = new MemoryImage(BYTES);
  let kept: Uint8Array | undefined;
  target.close = async () => {
    kept = await contentsOf(target);
  };
  const work = await BackupWork.begin(disk, target, 'j', { sync: 'full', targetIsZero: true });
  const writer = guest(disk, model, 6);
  const { job, events } = begin(work, 32 << 20);
  await job.done;
  await guestWrote(t, writer);
  t.deepEqual(events, ['BLOCK_JOB_COMPLETED']);
  t.is(Buffer.compare(kept!, before), 0);
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
});

test.serial(
  'incremental backups by a bitmap make the disk of each moment again, and a failed one loses nothing',
  async (t) => {
    const { disk, model } = await filled(7);
    disk.bitmaps.add('b', new DirtyBitmap(BYTES));
    const bits = disk.bitmaps.get('b');
    const copy = new Uint8Array(BYTES);
    copy.set(model);
    for (let round = 0; round < 4; round++) {
      const first = guest(disk, model, 10 + round);
      await new Promise((resolve) => setTimeout(resolve, 20));
      await guestWrote(t, first);
      const expected = model.slice();
      const target = new MemoryImage(BYTES);
      target.close = async () => {};
      if (round === 1) {
        const failing = new MemoryImage(BYTES);
        failing.write = async () => {
          throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
        };
        const dirty = bits.dirtyBytes;
        const work = await BackupWork.begin(disk, failing, 'f', {
          sync: 'incremental',
          bitmap: { name: 'b', bits },
          targetIsZero: true,
        });
        const failed = begin(work);
        await failed.job.done;
        t.deepEqual(failed.events, ['BLOCK_JOB_COMPLETED']);
        t.truthy((failed.data[0] as { error?: string }).error);
        t.is(bits.dirtyBytes, dirty);
      }
      const options = { sync: 'incremental', bitmap: { name: 'b', bits }, targetIsZero: true } as const;
      const changed = bits.copy();
      const work = await BackupWork.begin(disk, target, 'j', options);
      await t.throwsAsync(BackupWork.begin(disk, target, 'k', options), { message: /in use/ });
      t.throws(() => disk.bitmaps.remove('b'), { message: /job j works with it/ });
      const writer = guest(disk, model, 20 + round);
      await begin(work).job.done;
      await writer.stop();
      // The increment over the copy from before
      for (let run = changed.next(0); run !== undefined; run = changed.next(run.offset + run.lengthBytes)) {
        await target.read(run.offset, copy.subarray(run.offset, run.offset + run.lengthBytes));
      }
      t.is(Buffer.compare(copy, expected), 0, `round ${round}`);
    }
  },
);

async function overlay(base: DiskImage): Promise<Qcow2Image> {
  const contents = emptyImage({ sizeBytes: BYTES, backing: { file: 'base', format: 'raw' } });
  return Qcow2Image.openFile(new LogImageFile(contents), { readOnly: false, backing: base });
}

test.serial('commit brings what an overlay has into the image below, and the disk goes on with that', async (t) => {
  const { disk: below, model } = await filled(30);
  const top = await overlay(below);
  await top.write(100_000, new Uint8Array(300_000).fill(7));
  model.fill(7, 100_000, 400_000);
  const disk = new JobDisk(top);
  const work = new MirrorWork(disk, below, { type: 'commit', sync: 'top', targetIsZero: false }, async () => {
    top.keepBacking();
    await top.close();
  });
  const writer = guest(disk, model, 31);
  const { job, ready } = begin(work);
  await ready();
  t.is(job.info.type, 'commit');
  job.complete();
  await job.done;
  await guestWrote(t, writer);
  t.is(disk.image, below);
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
});

test.serial('stream makes an overlay whole, and nothing is under it afterwards', async (t) => {
  const { disk: below, model } = await filled(40);
  const top = await overlay(below);
  await top.write(100_000, new Uint8Array(300_000).fill(7));
  model.fill(7, 100_000, 400_000);
  const disk = new JobDisk(top);
  const writer = guest(disk, model, 41);
  const { job, events } = begin(new StreamWork(disk, top), 32 << 20);
  await job.done;
  await guestWrote(t, writer);
  t.deepEqual(events, ['BLOCK_JOB_COMPLETED']);
  t.is(top.header.backingFile, undefined);
  t.is(top.backing, undefined);
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
});

test.serial('a job can be slowed, paused and resumed', async (t) => {
  const { disk } = await filled(50);
  const { job } = begin(
    new MirrorWork(disk, new MemoryImage(BYTES), { sync: 'full', targetIsZero: false }, async () => {}),
    1 << 20,
  );
  await new Promise((resolve) => setTimeout(resolve, 100));
  job.pause();
  await new Promise((resolve) => setTimeout(resolve, 50));
  const { offset } = job.info;
  t.true(offset <= 3 << 20, `${offset} bytes in 0.1 s with 1 MiB a second`);
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.like(job.info, { offset, paused: true, status: 'paused', speed: 1 << 20 });
  t.throws(() => job.complete(), { message: /cannot be completed/ });
  job.setSpeed(0);
  job.resume();
  await new Promise((resolve) => setTimeout(resolve, 200));
  t.is(job.info.status, 'ready');
  job.complete();
  await job.done;
});

test.serial('a disk that stands still lets nothing through, and everything afterwards', async (t) => {
  const disk = new JobDisk(new MemoryImage(BYTES));
  const order: string[] = [];
  const first = disk.alone(async () => {
    t.false(disk.writeNow(0, new Uint8Array(1)));
    void disk.write(0, new Uint8Array(1)).then(() => order.push('write'));
    await new Promise((resolve) => setTimeout(resolve, 30));
    order.push('first');
  });
  const second = disk.alone(async () => order.push('second'));
  await Promise.all([first, second]);
  await disk.read(0, new Uint8Array(1));
  t.is(order[0], 'first');
  t.true(order.includes('write') && order.includes('second'));
});
