import { readFileSync, writeFileSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { DirtyBitmap } from '../../services/nbd/images/mod.ts';
import {
  amendQcow2,
  applySnapshot,
  checkQcow2,
  commitQcow2,
  createQcow2,
  createSnapshot,
  deleteSnapshot,
  preallocateQcow2,
  Qcow2Image,
  rebaseQcow2,
  resizeQcow2,
} from '../../services/nbd/images/qcow2/mod.ts';
import { randomNumbers } from '../../test/fixtures/log_image_file.ts';
import { randomWork } from '../../test/fixtures/random_work.ts';
import { hasPrograms, mustRun, PeerServer, run, scratch } from '../nbd/peers.ts';

// What changes an image as a whole, judged by qemu-img, and done by one side after the other.

const MIB = 1 << 20;
const files = scratch();
test.after.always(() => files.remove());

interface QemuCheck {
  leaks?: number;
  corruptions?: number;
  'leaks-fixed'?: number;
  'corruptions-fixed'?: number;
  'check-errors': number;
  'image-end-offset': number;
  'total-clusters': number;
  'allocated-clusters'?: number;
  'compressed-clusters'?: number;
  'fragmented-clusters'?: number;
}

async function qemuCheck(path: string, ...more: string[]): Promise<QemuCheck> {
  const { stdout, stderr } = await run('qemu-img', ['check', ...more, '-f', 'qcow2', '--output=json', path]);
  try {
    return JSON.parse(stdout) as QemuCheck;
  } catch {
    throw new Error(`qemu-img check ${path}: ${stderr}`);
  }
}

async function clean(t: ExecutionContext, path: string): Promise<void> {
  const report = await qemuCheck(path);
  t.is(report.corruptions ?? 0, 0, JSON.stringify(report));
  t.is(report.leaks ?? 0, 0, JSON.stringify(report));
  t.is(report['check-errors'], 0);
  const ours = await checkQcow2(path);
  t.like(ours, { leaks: 0, corruptions: 0, checkErrors: 0 });
  t.is(ours.imageEndOffset, report['image-end-offset']);
  t.is(ours.totalClusters, report['total-clusters']);
  t.is(ours.allocatedClusters, report['allocated-clusters'] ?? 0);
  t.is(ours.compressedClusters, report['compressed-clusters'] ?? 0);
  t.is(ours.fragmentedClusters, report['fragmented-clusters'] ?? 0);
}

async function same(t: ExecutionContext, path: string, contents: Uint8Array): Promise<void> {
  const raw = `${path}.wanted`;
  writeFileSync(raw, contents);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
}

async function work(path: string, model: Uint8Array, seed: number): Promise<void> {
  const image = await Qcow2Image.open(path, { readOnly: false });
  await randomWork(image, model, { seed, steps: 60, maxBytes: model.length / 8 });
  await image.flush();
  await image.close();
}

const layouts = [
  'cluster_size=4k',
  'cluster_size=512,refcount_bits=32',
  'cluster_size=64k,compat=0.10',
  'cluster_size=64k,compression_type=zstd',
  'cluster_size=16k,extended_l2=on',
];

for (const [index, layout] of layouts.entries()) {
  test(`Q12 our snapshots and qemu-img's in one image: ${layout}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const path = files.path(`snapshots-${index}.qcow2`);
    const raw = files.path(`snapshots-${index}.raw`);
    const model = new Uint8Array(2 * MIB).map((_, at) => (at >> 13) & 0xff);
    writeFileSync(raw, model);
    await mustRun(t, 'qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', layout, raw, path]);
    const kept: Uint8Array[] = [];
    for (let round = 0; round < 4; round++) {
      kept.push(model.slice());
      if (round % 2 === 0) await mustRun(t, 'qemu-img', ['snapshot', '-c', `s${round}`, path]);
      else {
        const image = await Qcow2Image.open(path, { readOnly: false });
        await createSnapshot(image, `s${round}`);
        await image.close();
      }
      await clean(t, path);
      await work(path, model, index * 10 + round);
    }
    t.regex(await mustRun(t, 'qemu-img', ['snapshot', '-l', path]), /s0[\s\S]*s1[\s\S]*s2[\s\S]*s3/);
    for (const name of ['s1', 's2']) {
      const image = await Qcow2Image.open(path, { readOnly: false });
      await applySnapshot(image, name);
      await image.close();
      await clean(t, path);
      await same(t, path, kept[Number(name[1])]!);
    }
    model.set(kept[2]!);
    await work(path, model, index);
    await mustRun(t, 'qemu-img', ['snapshot', '-a', 's3', path]);
    await same(t, path, kept[3]!);
    const image = await Qcow2Image.open(path, { readOnly: false });
    await deleteSnapshot(image, 's0');
    await deleteSnapshot(image, 's3');
    await image.close();
    await clean(t, path);
    await same(t, path, kept[3]!);
    await mustRun(t, 'qemu-img', ['snapshot', '-d', 's1', path]);
    await mustRun(t, 'qemu-img', ['snapshot', '-d', 's2', path]);
    model.set(kept[3]!);
    await work(path, model, index + 3);
    await clean(t, path);
    await same(t, path, model);
  });

  test(`Q17 what we resize, qemu-img finds whole, and the other way round: ${layout}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const path = files.path(`resize-${index}.qcow2`);
    let model = new Uint8Array(2 * MIB);
    await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-o', layout, path, String(model.length)]);
    for (const [step, mib] of [5, 3, 64, 1].entries()) {
      await work(path, model, index * 7 + step);
      if (step % 2 === 0) {
        const image = await Qcow2Image.open(path, { readOnly: false });
        await resizeQcow2(image, mib * MIB, { shrink: true });
        await image.close();
      } else await mustRun(t, 'qemu-img', ['resize', '--shrink', '-f', 'qcow2', path, `${mib}M`]);
      const next = new Uint8Array(mib * MIB);
      next.set(model.subarray(0, next.length));
      model = next;
      await clean(t, path);
      await same(t, path, model);
    }
  });
}

/** What NBD tells of a bitmap, by qemu-nbd and nbdinfo. */
async function exported(t: ExecutionContext, path: string, name: string): Promise<[offset: number, length: number][]> {
  const socket = files.path(`bitmap-${name}-${t.title.length}.sock`);
  const server = await PeerServer.start(
    t,
    'qemu-nbd',
    ['-r', '-t', '-k', socket, '-f', 'qcow2', '-B', name, path],
    socket,
  );
  const uri = `nbd+unix:///?socket=${socket}`;
  const map = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', `--map=qemu:dirty-bitmap:${name}`, uri])) as {
    offset: number;
    length: number;
    type: number;
  }[];
  await server.stop();
  return map.filter(({ type }) => type === 1).map(({ offset, length }) => [offset, length]);
}

test('Q13 qemu-nbd exports the bitmaps that we keep, and we know those that qemu-img made', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-nbd', 'qemu-io', 'nbdinfo')) return;
  const path = files.path('bitmaps.qcow2');
  await createQcow2(path, { sizeBytes: 16 * MIB });
  const image = await Qcow2Image.open(path, { readOnly: false });
  image.bitmaps.add('ours', new DirtyBitmap(image.sizeBytes, 65_536, { persistent: true }));
  image.bitmaps.add('fine', new DirtyBitmap(image.sizeBytes, 512, { persistent: true }));
  image.bitmaps.add('gone', new DirtyBitmap(image.sizeBytes));
  await image.write(100_000, new Uint8Array(50_000).fill(1));
  await image.writeZeroes(5 * MIB, 65_536, { mayUnmap: true, fast: false });
  await image.discard(6 * MIB, 65_536);
  await image.write(7 * MIB, new Uint8Array(1).fill(1));
  await image.flush();
  // In work, the file says so to everybody.
  t.regex(await mustRun(t, 'qemu-img', ['check', '-U', path]), /No errors/);
  await image.close();
  await clean(t, path);
  t.deepEqual(await exported(t, path, 'ours'), [
    [65_536, 131_072],
    [5 * MIB, 65_536],
    [6 * MIB, 65_536],
    [7 * MIB, 65_536],
  ]);
  t.deepEqual((await exported(t, path, 'fine'))[0], [99_840, 50_176]);

  await mustRun(t, 'qemu-img', ['bitmap', '--add', '-g', '32k', path, 'theirs']);
  await mustRun(t, 'qemu-img', ['bitmap', '--merge', 'ours', path, 'theirs']);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write 12M 1', path]);
  const again = await Qcow2Image.open(path, { readOnly: false });
  t.deepEqual(
    [...again.bitmaps].map(([name, { granularityBytes, recording, inconsistent }]) => [
      name,
      granularityBytes,
      recording,
      inconsistent,
    ]),
    [
      ['ours', 65_536, true, false],
      ['fine', 512, true, false],
      ['theirs', 32_768, true, false],
    ],
  );
  t.true(again.bitmaps.get('theirs').isDirty(100_000));
  t.true(again.bitmaps.get('theirs').isDirty(12 * MIB));
  t.false(again.bitmaps.get('theirs').isDirty(13 * MIB));
  again.bitmaps.remove('fine');
  again.bitmaps.get('ours').clear();
  await again.touchBitmaps();
  await again.close();
  await clean(t, path);
  t.deepEqual(await exported(t, path, 'ours'), []);
  const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', path]));
  t.deepEqual(
    info['format-specific'].data.bitmaps.map((bitmap: { name: string }) => bitmap.name),
    ['ours', 'theirs'],
  );
});

test('Q13 a bitmap whose writer was killed is inconsistent for qemu-img and for us, and can be removed', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const path = files.path('killed.qcow2');
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', path, '4M']);
  await mustRun(t, 'qemu-img', ['bitmap', '--add', path, 'b']);
  const image = await Qcow2Image.open(path, { readOnly: false });
  await image.write(0, new Uint8Array(65_536).fill(1));
  await image.flush();
  const left = readFileSync(path);
  await image.close();
  const copy = files.path('killed-copy.qcow2');
  writeFileSync(copy, left);
  const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', copy]));
  t.deepEqual(info['format-specific'].data.bitmaps[0].flags, ['in-use', 'auto']);
  const again = await Qcow2Image.open(copy, { readOnly: false });
  t.true(again.bitmaps.get('b').inconsistent);
  again.bitmaps.remove('b');
  await again.touchBitmaps();
  await again.close();
  await clean(t, copy);
});

/** Damage of many kinds, in an image with a snapshot; each as numbers of a seed. */
function damage(bytes: Buffer, kind: number, seed: number): void {
  const random = randomNumbers(seed);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const table = Number(bytes.readBigUInt64BE(48));
  const block = Number(bytes.readBigUInt64BE(table));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  const clusters = Math.ceil(bytes.length / 4096) - 220;
  switch (kind) {
    case 0: // leaks
      for (let count = 0; count < 5; count++) {
        const at = block + (clusters + random(200)) * 2;
        bytes.writeUInt16BE(1, at);
      }
      return;
    case 1: // refcounts that are too low
      for (let count = 0; count < 5; count++) bytes.writeUInt16BE(0, block + (10 + random(clusters - 10)) * 2);
      return;
    case 2: // COPIED flags
      for (let count = 0; count < 5; count++) bytes[l2 + random(64) * 8]! ^= 0x80;
      return;
    case 3: // entries that lead nowhere
      bytes.writeBigUInt64BE((1n << 63n) | 0x7fff_0000_0000n, l2 + random(64) * 8);
      return;
    case 4: // unaligned
      bytes.writeBigUInt64BE((1n << 63n) | 0x5200n, l2 + random(64) * 8);
      return;
    default: // the dirty bit
      bytes[79]! |= 1;
      for (let count = 0; count < 5; count++) bytes.writeUInt16BE(0, block + (10 + random(clusters - 10)) * 2);
  }
}

const kinds = ['leaks', 'refcounts too low', 'COPIED flags', 'entries to nowhere', 'entries unaligned', 'dirty bit'];
for (const [kind, name] of kinds.entries()) {
  test(`Q16 we find what qemu-img finds, and it finds nothing after our repair: ${name}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const path = files.path(`damaged-${kind}.qcow2`);
    await createQcow2(path, { sizeBytes: 2 * MIB, clusterBytes: 4096 });
    await work(path, new Uint8Array(2 * MIB), 3);
    for (let seed = 0; seed < 4; seed++) {
      // Some free clusters at the end: what is counted behind the file is no leak.
      const bytes = Buffer.concat([readFileSync(path), Buffer.alloc(220 * 4096)]);
      damage(bytes, kind, seed);
      const copy = files.path(`damaged-${kind}-${seed}.qcow2`);
      writeFileSync(copy, bytes);
      const theirs = await qemuCheck(copy);
      const ours = await checkQcow2(copy);
      t.is(ours.leaks, theirs.leaks ?? 0, JSON.stringify({ ours, theirs }));
      // QEMU also counts the two clusters that an unaligned one touches.
      const expected = (theirs.corruptions ?? 0) - (kind === 4 ? 2 : 0);
      t.is(ours.corruptions, expected, JSON.stringify({ ours, theirs }));
      const fixed = await checkQcow2(copy, kind === 0 ? 'leaks' : 'all');
      t.like(fixed, { leaks: 0, corruptions: 0 });
      t.is(fixed.leaksFixed, ours.leaks);
      // Flags that are wrong beside refcounts that are wrong are right once these are mended, and not counted.
      const mended = files.path(`mended-${kind}-${seed}.qcow2`);
      writeFileSync(mended, bytes);
      const byQemu = await qemuCheck(mended, '-r', 'all');
      const countsSame = name === 'refcounts too low' || name === 'COPIED flags' || name === 'dirty bit';
      t.is(fixed.corruptionsFixed, countsSame ? (byQemu['corruptions-fixed'] ?? 0) : ours.corruptions);
      await clean(t, copy);
      const image = await Qcow2Image.open(copy, { readOnly: false });
      await image.write(0, new Uint8Array(100_000).fill(1));
      await image.close();
      await clean(t, copy);
    }
  });
}

test('Q8 lazy refcounts: the dirty bit stands while we write, and is mended by either side', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const path = files.path('lazy.qcow2');
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-o', 'lazy_refcounts=on,cluster_size=4k', path, '4M']);
  const model = new Uint8Array(4 * MIB);
  const image = await Qcow2Image.open(path, { readOnly: false });
  await randomWork(image, model, { seed: 4, steps: 100, maxBytes: 1 << 18 });
  await image.flush();
  const left = readFileSync(path);
  t.is(left[79]! & 1, 1, 'the dirty bit is not set');
  await image.close();
  t.is(readFileSync(path)[79]! & 1, 0, 'the dirty bit is still set');
  await clean(t, path);
  await same(t, path, model);
  for (const who of ['qemu', 'us']) {
    const copy = files.path(`lazy-${who}.qcow2`);
    writeFileSync(copy, left);
    if (who === 'qemu') await qemuCheck(copy, '-r', 'all');
    else {
      const again = await Qcow2Image.open(copy, { readOnly: false });
      await again.write(0, new Uint8Array(1));
      model[0] = 0;
      await again.close();
    }
    await clean(t, copy);
    if (who === 'us') await same(t, copy, model);
  }
});

test('Q17 commit, rebase, amend and preallocation leave what qemu-img finds whole', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const [base, top, other] = ['c-base', 'c-top', 'c-other'].map((name) => files.path(`${name}.qcow2`)) as [
    string,
    string,
    string,
  ];
  const model = new Uint8Array(4 * MIB);
  await createQcow2(base, { sizeBytes: 2 * MIB, version: 2 });
  await work(base, model.subarray(0, 2 * MIB), 60);
  await createQcow2(top, { sizeBytes: 4 * MIB, backing: { file: base, format: 'qcow2' } });
  const below = async (readOnly: boolean): Promise<Qcow2Image> => Qcow2Image.open(base, { readOnly });
  const image = await Qcow2Image.open(top, { readOnly: false, backing: await below(true) });
  await randomWork(image, model, { seed: 61, steps: 60, maxBytes: 1 << 18 });
  await image.flush();

  // Over another image, which is not the same, and over none
  await createQcow2(other, { sizeBytes: 3 * MIB });
  await work(other, new Uint8Array(3 * MIB), 62);
  await rebaseQcow2(image, await Qcow2Image.open(other, { readOnly: true }), { file: other, format: 'qcow2' });
  await clean(t, top);
  await same(t, top, model);
  const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', top]));
  t.is(info['backing-filename'], other);
  t.is(info['backing-filename-format'], 'qcow2');
  await rebaseQcow2(image, undefined, null);
  await image.close();
  await clean(t, top);
  await same(t, top, model);

  // Into the image below, which grows; the overlay is empty then
  const overlay = files.path('c-overlay.qcow2');
  await createQcow2(overlay, { sizeBytes: 4 * MIB, backing: { file: base, format: 'qcow2' } });
  const upper = await Qcow2Image.open(overlay, { readOnly: false, backing: await below(true) });
  const contents = new Uint8Array(4 * MIB);
  await upper.read(0, contents);
  await randomWork(upper, contents, { seed: 63, steps: 60, maxBytes: 1 << 18 });
  const lower = await below(false);
  await commitQcow2(upper, lower);
  await lower.close();
  await upper.close();
  for (const path of [base, overlay]) {
    await clean(t, path);
    await same(t, path, contents);
  }
  const map = JSON.parse(await mustRun(t, 'qemu-img', ['map', '--output=json', '-f', 'qcow2', overlay])) as {
    depth: number;
  }[];
  t.true(
    map.every(({ depth }) => depth > 0),
    'the overlay is not empty',
  );

  const amended = await below(false);
  await amendQcow2(amended, { version: 3, lazyRefcounts: true });
  await amended.close();
  await clean(t, base);
  await same(t, base, contents);
  const after = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', base]));
  t.like(after['format-specific'].data, { compat: '1.1', 'lazy-refcounts': true });

  for (const mode of ['metadata', 'full'] as const) {
    for (const extendedL2 of [false, true]) {
      const path = files.path(`allocated-${mode}-${extendedL2}.qcow2`);
      await createQcow2(path, { sizeBytes: 3 * MIB, extendedL2 });
      const empty = await Qcow2Image.open(path, { readOnly: false });
      await preallocateQcow2(empty, mode);
      await empty.close();
      await clean(t, path);
      await same(t, path, new Uint8Array(3 * MIB));
      t.is((await checkQcow2(path)).allocatedClusters, 48);
    }
  }
});
