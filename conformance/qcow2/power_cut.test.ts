import { readFileSync, writeFileSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { DirtyBitmap } from '../../services/nbd/images/mod.ts';
import {
  applySnapshot,
  type CreateQcow2Options,
  createSnapshot,
  deleteSnapshot,
  emptyImage,
  Qcow2Image,
  resizeQcow2,
} from '../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile, type LogStep, randomNumbers } from '../../test/fixtures/log_image_file.ts';
import { randomWork } from '../../test/fixtures/random_work.ts';
import { hasPrograms, mustRun, run, scratch } from '../nbd/peers.ts';

/** qemu-img check takes about 20 ms: so many images are checked for each variant */
const CHECKS = 80;
const files = scratch();
test.after.always(() => files.remove());

const variants: readonly (Omit<CreateQcow2Options, 'sizeBytes'> & { diskBytes: number })[] = [
  { diskBytes: 400_384, clusterBytes: 512, refcountBits: 64 },
  { diskBytes: 1 << 20, clusterBytes: 512, refcountBits: 1 },
  { diskBytes: 2 << 20, clusterBytes: 4096, refcountBits: 16 },
  { diskBytes: 2 << 20, clusterBytes: 4096, version: 2 },
  { diskBytes: 4 << 20, clusterBytes: 65_536, refcountBits: 16 },
  { diskBytes: 2 << 20, clusterBytes: 16_384, extendedL2: true },
];

/** What is in the file when the power goes: every step up to `end`; `lost` ones were still in the disk's cache. */
function contentsAfter(start: Uint8Array, log: readonly LogStep[], end: number, lost: ReadonlySet<number>): Uint8Array {
  let size = start.length;
  for (let index = 0; index < end; index++) {
    const step = log[index]!;
    if (step !== 'sync') size = Math.max(size, step.offset + step.data.length);
  }
  const contents = new Uint8Array(size);
  contents.set(start);
  for (let index = 0; index < end; index++) {
    const step = log[index]!;
    if (step !== 'sync' && !lost.has(index)) contents.set(step.data, step.offset);
  }
  return contents;
}

for (const [index, { diskBytes, ...options }] of variants.entries()) {
  const name = `v${options.version ?? 3}, clusters of ${options.clusterBytes}, ${options.refcountBits ?? 16}-bit refcounts${options.extendedL2 ? ', extended' : ''}`;

  test(`Q7 no power cut corrupts the image: ${name}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const start = emptyImage({ ...options, sizeBytes: diskBytes });
    await survivesPowerCuts(t, start, new Uint8Array(diskBytes), 77 + index);
  });
}

for (const [index, convert] of [[], ['-c']].entries()) {
  const kind = convert.length === 0 ? 'standard' : 'compressed';

  test(`Q7 Q12 no power cut corrupts an image that shares ${kind} clusters with a snapshot`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const raw = files.path(`shared-${index}.raw`);
    const path = files.path(`shared-${index}.qcow2`);
    const model = new Uint8Array(1 << 20).map((_, at) => (at >> 12) & 0xff);
    writeFileSync(raw, model);
    const layout = ['-f', 'raw', '-O', 'qcow2', '-o', 'cluster_size=4k'];
    await mustRun(t, 'qemu-img', ['convert', ...convert, ...layout, raw, path]);
    await mustRun(t, 'qemu-img', ['snapshot', '-c', 'before', path]);
    await survivesPowerCuts(t, new Uint8Array(readFileSync(path)), model, 99 + index);
  });
}

/** All kinds of writes that there are, one after the other at random. */
async function everyKindOfWork(image: Qcow2Image, model: Uint8Array, seed: number): Promise<void> {
  const random = randomNumbers(seed);
  const { clusterBytes } = image.header;
  if (image.header.version === 3 && image.bitmaps.size === 0) {
    image.bitmaps.add('first', new DirtyBitmap(image.sizeBytes, 4096, { persistent: true }));
    await image.touchBitmaps();
  }
  let sizeBytes = image.sizeBytes;
  const kept = new Map<string, Uint8Array>();
  for (let round = 0; round < 14; round++) {
    const here = model.subarray(0, sizeBytes);
    await randomWork(image, here, { seed: seed + round, steps: 12, maxBytes: here.length / 8 });
    const kind = random(6);
    if (kind === 0) {
      const { id } = await createSnapshot(image, `s${round}`);
      kept.set(id, here.slice());
    } else if (kind === 1 && kept.size > 0) {
      const [id, contents] = [...kept][random(kept.size)]!;
      await applySnapshot(image, id);
      sizeBytes = image.sizeBytes;
      model.set(contents);
    } else if (kind === 2 && kept.size > 0) {
      const [id] = [...kept][random(kept.size)]!;
      await deleteSnapshot(image, id);
      kept.delete(id);
    } else if (kind === 3) {
      const at = random(Math.floor(sizeBytes / clusterBytes / 2)) * clusterBytes;
      const bytes = new Uint8Array(clusterBytes * Math.min(8, Math.floor((sizeBytes - at) / clusterBytes))).fill(round);
      await image.writeCompressed(at, bytes);
      model.set(bytes, at);
    } else if (kind === 4 && (image.header.version === 3 || kept.size === 0)) {
      const wanted = sizeBytes + (random(2) === 0 ? -8 : 8) * 4096;
      if (wanted > model.length / 2 && wanted <= model.length) {
        await resizeQcow2(image, wanted, { shrink: true });
        if (wanted > sizeBytes) model.fill(0, sizeBytes, wanted);
        sizeBytes = wanted;
      }
    } else if (kind === 5) {
      // As at the end of a machine: bitmaps are written back, and taken into use again.
      await image.inactivate();
      await image.activate();
    }
  }
}

for (const [index, options] of [
  { clusterBytes: 512, refcountBits: 32 },
  { clusterBytes: 4096 },
  { clusterBytes: 4096, version: 2 as const },
  { clusterBytes: 16_384, extendedL2: true },
  { clusterBytes: 4096, compression: 'zstd' as const },
].entries()) {
  test(`Q7 Q12 Q13 no power cut corrupts, whatever is done: ${JSON.stringify(options)}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const start = emptyImage({ ...options, sizeBytes: 512 << 10 });
    // Half of it is room for the disk to grow into.
    const model = new Uint8Array(1 << 20);
    const seed = 300 + index * 40;
    await survivesPowerCuts(t, start, model, seed, (image) => everyKindOfWork(image, model, seed));
  });
}

test('Q7 Q12 Q13 Q8 an answered flush is never lost, whatever is done before and after it', async (t) => {
  for (const options of [{}, { lazyRefcounts: true }, { extendedL2: true, clusterBytes: 16_384 }]) {
    const start = emptyImage({ sizeBytes: 512 << 10, clusterBytes: 4096, ...options });
    const file = new LogImageFile(start);
    const image = await Qcow2Image.openFile(file, { readOnly: false });
    const model = new Uint8Array(1 << 20);
    const flushed: { end: number; model: Uint8Array }[] = [];
    for (let round = 0; round < 6; round++) {
      await everyKindOfWork(image, model, 700 + round);
      await image.flush();
      flushed.push({ end: file.log.length, model: model.slice(0, image.sizeBytes) });
      await image.write(0, new Uint8Array(100).fill(round));
      model.fill(round, 0, 100);
    }
    for (const { end, model: expected } of flushed) {
      const last = file.log.lastIndexOf('sync', end - 1);
      const left = new LogImageFile(contentsAfter(start, file.log, last + 1, new Set()));
      const after = await Qcow2Image.openFile(left, { readOnly: false });
      const got = new Uint8Array(after.sizeBytes);
      await after.read(0, got);
      t.is(Buffer.compare(got, expected), 0, `flush before step ${end}`);
    }
  }
});

/** Random work, then the image as it is after cuts anywhere in the log of its writes. */
async function survivesPowerCuts(
  t: ExecutionContext,
  start: Uint8Array,
  model: Uint8Array,
  seed: number,
  work?: (image: Qcow2Image) => Promise<void>,
): Promise<void> {
  const file = new LogImageFile(start);
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await (work ?? ((at) => randomWork(at, model, { seed, steps: 120, maxBytes: model.length / 8 })))(image);
  await image.flush();
  await image.close();

  // A write of several sectors may be cut inside: pieces of it are steps of their own.
  const log = file.log.flatMap((step): LogStep[] => {
    if (step === 'sync' || step.data.length <= 512) return [step];
    const half = Math.floor(step.data.length / 1024) * 512;
    return [
      { offset: step.offset, data: step.data.subarray(0, half) },
      { offset: step.offset + half, data: step.data.subarray(half) },
    ];
  });
  const random = randomNumbers(seed);
  const stride = Math.max(1, Math.floor((log.length * 2) / CHECKS));
  let corrupt = 0;
  let checked = 0;
  for (let end = random(stride); end <= log.length; end += stride) {
    // In order, and with writes since the last sync lost at random: a disk may reorder these.
    let synced = end;
    while (synced > 0 && log[synced - 1] !== 'sync') synced--;
    const lost = new Set<number>();
    for (let at = synced; at < end; at++) if (random(2) === 0) lost.add(at);
    for (const without of [new Set<number>(), lost]) {
      const path = files.path(`cut-${seed}.qcow2`);
      writeFileSync(path, contentsAfter(start, log, end, without));
      const { stdout, stderr } = await run('qemu-img', ['check', '-f', 'qcow2', '--output=json', path]);
      const verdict = JSON.parse(stdout || '{}') as { corruptions?: number; 'check-errors'?: number };
      checked++;
      if ((verdict.corruptions ?? 0) > 0 || verdict['check-errors'] !== 0) {
        corrupt++;
        t.log(`cut after step ${end} of ${log.length}, ${without.size} lost: ${stdout}${stderr}`.slice(0, 2000));
      }
    }
    if (corrupt > 2) break;
  }
  t.is(corrupt, 0);
  t.true(checked > 50, `${checked} cuts checked`);
  t.log(`${checked} cuts of ${log.length} steps`);
}

test('Q7 an answered flush is never lost, whatever happens to the writes after it', async (t) => {
  const diskBytes = 1 << 20;
  const start = emptyImage({ sizeBytes: diskBytes, clusterBytes: 4096 });
  const file = new LogImageFile(start);
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  const model = new Uint8Array(diskBytes);
  const flushed: { end: number; model: Uint8Array }[] = [];
  const onFlush = (now: Uint8Array): void => {
    flushed.push({ end: file.log.length, model: now.slice() });
  };
  await randomWork(image, model, { seed: 5, steps: 400, maxBytes: 1 << 16, onFlush });
  t.true(flushed.length > 10);
  for (const { end, model: expected } of flushed) {
    // A decrement of a refcount may follow the last sync: all that was written after it may be lost.
    const last = file.log.lastIndexOf('sync', end - 1);
    const after = await Qcow2Image.openFile(new LogImageFile(contentsAfter(start, file.log, last + 1, new Set())), {
      readOnly: true,
    });
    const got = new Uint8Array(diskBytes);
    await after.read(0, got);
    t.is(Buffer.compare(got, expected), 0, `flush before step ${end}`);
  }
});
