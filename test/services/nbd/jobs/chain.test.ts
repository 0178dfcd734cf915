import test from 'ava';
import { type DiskImage, MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import {
  BlockJob,
  CommitWork,
  JobDisk,
  type JobEvent,
  type JobWork,
  Layers,
  MirrorWork,
  StreamWork,
} from '../../../../services/nbd/jobs/mod.ts';
import { LogImageFile, randomNumbers } from '../../../fixtures/log_image_file.ts';

// Jobs over several images under each other: base, then `layers` overlays, each with data and zeroes of its own.

const BYTES = 4 << 20;
const GRAIN = 65_536;

interface Chain {
  readonly base: MemoryImage;
  /** The upper first */
  readonly images: readonly Qcow2Image[];
  readonly files: readonly LogImageFile[];
  readonly disk: JobDisk;
  /** What the disk reads as */
  readonly model: Uint8Array;
}

/** `shortBytes`: the size of the overlay right above the base. All but the top are read-only, as under a guest. */
async function chain(seed: number, count: number, shortBytes = BYTES): Promise<Chain> {
  const random = randomNumbers(seed);
  const base = new MemoryImage(BYTES);
  let model = new Uint8Array(BYTES);
  for (let at = 0; at < BYTES; at += 10_000) model.fill(1 + random(255), at, at + 10_000);
  await base.write(0, model);
  const images: Qcow2Image[] = [];
  const files: LogImageFile[] = [];
  let below: DiskImage = base;
  for (let layer = 0; layer < count; layer++) {
    const sizeBytes = layer === 0 ? shortBytes : BYTES;
    const file = new LogImageFile(emptyImage({ sizeBytes, backing: { file: `under-${layer}`, format: 'qcow2' } }));
    const filling = await Qcow2Image.openFile(file, { readOnly: false, backing: below });
    const next = new Uint8Array(BYTES);
    next.set(model.subarray(0, sizeBytes));
    for (let change = 0; change < 12; change++) {
      const at = 512 * random((sizeBytes - 200_000) / 512);
      const data = new Uint8Array(512 * (1 + random(200))).fill(1 + random(255));
      await filling.write(at, data);
      next.set(data, at);
      const from = GRAIN * random(sizeBytes / GRAIN - 2);
      await filling.writeZeroes(from, 2 * GRAIN, { mayUnmap: true, fast: false });
      next.fill(0, from, from + 2 * GRAIN);
    }
    await filling.flush();
    filling.keepBacking();
    const isTop = layer === count - 1;
    if (isTop) images.unshift(filling);
    else {
      await filling.close();
      images.unshift(await Qcow2Image.openFile(file, { readOnly: true, backing: below }));
    }
    files.unshift(file);
    below = images[0]!;
    model = next;
  }
  const top = await Qcow2Image.openFile(files[0]!, { readOnly: false, backing: images[0]!.backing! });
  return { base, images: [top, ...images.slice(1)], files, disk: new JobDisk(top), model };
}

async function contentsOf(image: DiskImage): Promise<Uint8Array> {
  const all = new Uint8Array(image.sizeBytes);
  await image.read(0, all);
  return all;
}

/** A guest that writes whole sectors until it is stopped; the model has what the disk must hold. */
function guest(disk: JobDisk, model: Uint8Array, seed: number): { stop: () => Promise<void> } {
  const random = randomNumbers(seed);
  let stopped = false;
  const run = async (): Promise<void> => {
    for (let writes = 0; !stopped || writes < 6; writes++) {
      const length = 512 * (1 + random(40));
      const offset = 512 * random((model.length - length) / 512);
      const fill = 1 + random(255);
      model.fill(fill, offset, offset + length);
      await disk.write(offset, new Uint8Array(length).fill(fill));
      await new Promise((resolve) => setTimeout(resolve, 3));
    }
  };
  const running = run();
  return {
    stop: () => {
      stopped = true;
      return running;
    },
  };
}

function begin(work: JobWork): { job: BlockJob; events: [JobEvent, object][]; ready: Promise<void> } {
  const events: [JobEvent, object][] = [];
  const { promise, resolve } = Promise.withResolvers<void>();
  const job = new BlockJob('j', work, {
    speed: 0,
    emit: (event, data) => {
      events.push([event, data]);
      if (event === 'BLOCK_JOB_READY') resolve();
    },
  });
  return { job, events, ready: promise };
}

for (const shortBytes of [BYTES, BYTES / 2]) {
  const short = shortBytes === BYTES ? '' : ', where one of them is short';

  test.serial(`commit of the disk’s own image goes through those below it into the base${short}`, async (t) => {
    const { base, images, files, disk, model } = await chain(1, 3, shortBytes);
    t.is(Buffer.compare(await contentsOf(disk), model), 0, 'the disk before');
    const layers = new Layers(disk.image, 3);
    t.deepEqual(layers.images, images);
    await disk.alone(() => layers.lowest.swapBacking(base));
    const work = new MirrorWork(disk, base, { type: 'commit', layers, sync: 'top', targetIsZero: false }, () =>
      layers.close(),
    );
    const writer = guest(disk, model, 2);
    const { job, ready, events } = begin(work);
    await ready;
    job.complete();
    await job.done;
    await writer.stop();
    t.is(disk.image, base);
    t.is(Buffer.compare(await contentsOf(disk), model), 0);
    t.deepEqual(
      files.map(({ closed }) => closed),
      [true, true, true],
    );
    t.notRegex(JSON.stringify(events), /error/);
  });

  test.serial(`commit between two images leaves the disk’s own, over the base${short}`, async (t) => {
    const { base, images, files, disk, model } = await chain(3, 3, shortBytes);
    const between = await contentsOf(images[1]!);
    const layers = new Layers(images[1], 2);
    await disk.alone(() => layers.lowest.swapBacking(base));
    let done = 0;
    const work = new CommitWork(disk, {
      layers,
      base,
      overlay: images[0]!,
      name: { file: '/images/base', format: 'raw' },
      overlayFile: undefined,
      onDone: () => done++,
    });
    const writer = guest(disk, model, 4);
    const { job, events } = begin(work);
    await job.done;
    await writer.stop();
    t.is(done, 1);
    t.deepEqual(
      events.map(([event, data]) => [event, 'error' in data]),
      [['BLOCK_JOB_COMPLETED', false]],
    );
    t.is(job.info.offset, job.info.len);
    t.true(disk.image === images[0]);
    t.is(images[0]!.backing, base);
    t.like(images[0]!.header, { backingFile: '/images/base', backingFormat: 'raw' });
    t.is(Buffer.compare(await contentsOf(base), between), 0, 'the base');
    t.is(Buffer.compare(await contentsOf(disk), model), 0, 'the disk');
    t.deepEqual(
      files.map(({ closed }) => closed),
      [false, true, true],
    );
  });

  test.serial(`stream with a base takes what is above that, zeroes too${short}`, async (t) => {
    const { base, images, files, disk, model } = await chain(5, 3, shortBytes);
    const before = await contentsOf(base);
    const between = new Layers(images[1], 2);
    const work = new StreamWork(disk, images[0]!, { between, name: { file: '/images/base', format: 'raw' } });
    const writer = guest(disk, model, 6);
    const { job, events } = begin(work);
    await job.done;
    await writer.stop();
    t.notRegex(JSON.stringify(events), /error/);
    t.is(images[0]!.backing, base);
    t.like(images[0]!.header, { backingFile: '/images/base', backingFormat: 'raw' });
    t.is(Buffer.compare(await contentsOf(disk), model), 0, 'the disk');
    t.is(Buffer.compare(await contentsOf(base), before), 0, 'the base is as it was');
    t.deepEqual(
      files.map(({ closed }) => closed),
      [false, true, true],
    );
  });
}

test.serial('commit between two images under a read-only one changes the name in its file', async (t) => {
  const { base, images, files, disk, model } = await chain(7, 4);
  t.is(Buffer.compare(await contentsOf(disk), model), 0, 'before');
  const layers = new Layers(images[2], 1);
  // The object that it takes the place of is closed, and both lie over one base in memory.
  images[3]!.keepBacking();
  const lower = await Qcow2Image.openFile(files[3]!, { readOnly: false, backing: base });
  await disk.alone(() => layers.lowest.swapBacking(lower));
  const under = await contentsOf(images[2]!);
  const work = new CommitWork(disk, {
    layers,
    base: lower,
    overlay: images[1]!,
    name: { file: '/images/lower', format: 'qcow2' },
    overlayFile: files[1],
  });
  const writer = guest(disk, model, 8);
  const { job, events } = begin(work);
  await job.done;
  await writer.stop();
  t.notRegex(JSON.stringify(events), /error/);
  t.is(images[1]!.backing, lower);
  t.like(images[1]!.header, { backingFile: '/images/lower', backingFormat: 'qcow2' });
  t.is(Buffer.compare(await contentsOf(lower), under), 0);
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
  await t.throwsAsync(lower.write(0, new Uint8Array(512)), { code: 'EPERM' }, 'nobody writes to it any more');
});

test.serial('a commit that fails leaves the disk as it reads, over all its images', async (t) => {
  const { base, images, disk, model } = await chain(9, 3);
  t.is(Buffer.compare(await contentsOf(disk), model), 0, 'before');
  const layers = new Layers(images[1], 2);
  const broken = new Proxy(base, {
    get(target, key) {
      if (key === 'write') return () => Promise.reject(new Error('broken'));
      const value = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  base.close = async () => {}; // it is under both
  await disk.alone(() => layers.lowest.swapBacking(broken));
  const name = { file: '/images/base', format: 'raw' };
  const { job, events } = begin(
    new CommitWork(disk, { layers, base: broken, overlay: images[0]!, name, overlayFile: undefined }),
  );
  await job.done;
  t.regex(JSON.stringify(events), /BLOCK_JOB_COMPLETED.*error/);
  t.is(images[0]!.backing, images[1]);
  t.is(images[0]!.header.backingFile, 'under-2');
  t.is(Buffer.compare(await contentsOf(disk), model), 0);
});

test.serial('layers that are not there are refused', async (t) => {
  const { images, disk } = await chain(11, 2);
  t.throws(() => new Layers(disk.image, 3), { code: 'ERR_BLOCK_JOB', message: /number 3 has none below/ });
  t.throws(() => new Layers(undefined, 1), { code: 'ERR_BLOCK_JOB' });
  t.deepEqual(new Layers(disk.image, 2).images, images);
});
