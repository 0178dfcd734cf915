import { readFileSync, writeFileSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { RawImage } from '../../services/nbd/images/mod.ts';
import { createQcow2, FdImageFile, inspectQcow2, Qcow2Image } from '../../services/nbd/images/qcow2/mod.ts';
import { randomNumbers } from '../../test/fixtures/log_image_file.ts';
import { randomWork } from '../../test/fixtures/random_work.ts';
import { hasPrograms, mustRun, run, scratch } from '../nbd/peers.ts';

const files = scratch();
test.after.always(() => files.remove());

/** Text that compresses, noise that does not, and holes. */
function contents(bytes: number, seed: number): Uint8Array {
  const random = randomNumbers(seed);
  const data = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += 32_768) {
    const piece = data.subarray(at, at + 32_768);
    const kind = random(4);
    if (kind === 1) for (let index = 0; index < piece.length; index++) piece[index] = random(256);
    else if (kind > 1) for (let index = 0; index < piece.length; index++) piece[index] = 97 + (index % (kind + 5));
  }
  return data;
}

async function readAll(path: string, options: { backing?: RawImage | Qcow2Image } = {}): Promise<Uint8Array> {
  const image = await Qcow2Image.open(path, { readOnly: true, ...options });
  const all = new Uint8Array(image.sizeBytes);
  await image.read(0, all);
  await image.close();
  return all;
}

async function clean(t: ExecutionContext, path: string): Promise<void> {
  const report = JSON.parse(await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', '--output=json', path])) as {
    leaks?: number;
    corruptions?: number;
    'check-errors': number;
  };
  t.is(report.corruptions ?? 0, 0);
  t.is(report.leaks ?? 0, 0);
  t.is(report['check-errors'], 0);
}

const layouts = [
  ['cluster_size=512'],
  ['cluster_size=512', 'refcount_bits=1'],
  ['cluster_size=4096', 'refcount_bits=64'],
  ['cluster_size=64k', 'compat=0.10'],
  ['cluster_size=64k', 'lazy_refcounts=on'],
  ['cluster_size=2M', 'refcount_bits=8'],
  ['cluster_size=16k', 'extended_l2=on'],
  ['cluster_size=128k', 'extended_l2=on'],
];

for (const [index, layout] of layouts.entries()) {
  const name = layout.join(' ');

  test(`Q4 what qemu-img converts to qcow2, we read: ${name}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const raw = files.path(`in-${index}.raw`);
    const path = files.path(`in-${index}.qcow2`);
    const data = contents(5 << 20, index);
    writeFileSync(raw, data);
    await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-o', layout.join(','), raw, path]);
    t.is(Buffer.compare(await readAll(path), data), 0);
  });

  test(`Q7 what we write into qemu-img's image at random, qemu-img finds and reads: ${name}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const raw = files.path(`w-${index}.raw`);
    const path = files.path(`w-${index}.qcow2`);
    const data = contents(3 << 20, index);
    writeFileSync(raw, data);
    const compressed = index % 2 === 0 ? ['-c'] : [];
    await mustRun(t, 'qemu-img', [
      'convert',
      ...compressed,
      '-f',
      'raw',
      '-O',
      'qcow2',
      '-o',
      layout.join(','),
      raw,
      path,
    ]);
    const image = await Qcow2Image.open(path, { readOnly: false });
    await randomWork(image, data, { seed: index, steps: 120, maxBytes: 1 << 19 });
    await image.flush();
    await image.close();
    writeFileSync(raw, data);
    await clean(t, path);
    await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
  });
}

for (const options of [
  { clusterBytes: 512, refcountBits: 1 },
  { clusterBytes: 4096, refcountBits: 64 },
  { clusterBytes: 65_536, version: 2 as const },
  { clusterBytes: 65_536, compression: 'zstd' as const },
  { clusterBytes: 2 << 20 },
  { clusterBytes: 65_536, extendedL2: true },
  { clusterBytes: 16_384, extendedL2: true, lazyRefcounts: true },
]) {
  test(`Q17 qemu-img accepts what we create, and qemu-io what is in it: ${JSON.stringify(options)}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
    const name = `created-${Object.values(options).join('-')}`;
    const path = files.path(`${name}.qcow2`);
    const raw = files.path(`${name}.raw`);
    await createQcow2(path, { sizeBytes: 6 << 20, ...options });
    await clean(t, path);
    const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', path])) as Record<string, unknown>;
    t.is(info.format, 'qcow2');
    t.is(info['virtual-size'], 6 << 20);
    t.is(info['cluster-size'], options.clusterBytes);

    // qemu-io writes, we go on, qemu-io reads.
    const data = new Uint8Array(6 << 20);
    writeFileSync(raw, data);
    const random = randomNumbers(9);
    const commands: string[] = [];
    for (let step = 0; step < 40; step++) {
      const length = 512 * (1 + random(300));
      const offset = 512 * random((data.length - length) / 512);
      const fill = random(256);
      commands.push('-c', random(5) === 0 ? `write -z ${offset} ${length}` : `write -P ${fill} ${offset} ${length}`);
    }
    await mustRun(t, 'qemu-io', ['-f', 'qcow2', ...commands, path]);
    await mustRun(t, 'qemu-io', ['-f', 'raw', ...commands, raw]);
    const model = new Uint8Array(readFileSync(raw));
    const image = await Qcow2Image.open(path, { readOnly: false });
    await randomWork(image, model, { seed: 3, steps: 100, maxBytes: 1 << 19 });
    await image.write(1000, new Uint8Array(70_000).fill(0xa5));
    await image.flush();
    await image.close();
    await clean(t, path);
    await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'read -P 0xa5 1000 70000', path]);
  });
}

for (const type of ['zlib', 'zstd']) {
  for (const cluster of ['512', '64k', '2M']) {
    test(`Q5 compressed clusters are read and overwritten: ${type}, clusters of ${cluster}`, async (t) => {
      if (!hasPrograms(t, 'qemu-img')) return;
      const raw = files.path(`c-${type}-${cluster}.raw`);
      const path = files.path(`c-${type}-${cluster}.qcow2`);
      const data = contents((5 << 20) + 512, 4);
      writeFileSync(raw, data);
      const layout = `cluster_size=${cluster},compression_type=${type}`;
      const made = await run('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', layout, raw, path]);
      if (made.status !== 0) {
        t.log(`SKIPPED: ${made.stderr}`);
        t.pass();
        return;
      }
      t.is(Buffer.compare(await readAll(path), data), 0);
      const image = await Qcow2Image.open(path, { readOnly: false });
      await image.write(100, new Uint8Array(100_000).fill(9));
      await image.discard(1 << 20, 2 << 20);
      await image.write(1 << 20, new Uint8Array(2 << 20).fill(8));
      await image.flush();
      await image.close();
      data.fill(9, 100, 100_100).fill(8, 1 << 20, 3 << 20);
      writeFileSync(raw, data);
      await clean(t, path);
      await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
    });
  }
}

test('Q6 extended L2 entries are read, subcluster by subcluster', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
  const path = files.path('extended.qcow2');
  const raw = files.path('extended.raw');
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-o', 'extended_l2=on,cluster_size=128k', path, '4M']);
  const commands = ['-c', 'write -P 7 5000 300000', '-c', 'write -z 16k 40k', '-c', 'write -P 3 1M 512'];
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', ...commands, path]);
  await mustRun(t, 'qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', path, raw]);
  t.is(Buffer.compare(await readAll(path), readFileSync(raw)), 0);
});

test('Q10 a chain of three, opened by us one by one, reads and takes writes', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
  const [base, middle, top, raw] = ['base.raw', 'middle.qcow2', 'top.qcow2', 'flat.raw'].map((name) =>
    files.path(name),
  );
  writeFileSync(base!, contents(2 << 20, 8));
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-b', base!, '-F', 'raw', middle!, '3M']);
  await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 1 100k 200k', '-c', 'write -z 1M 64k', middle!]);
  await createQcow2(top!, { sizeBytes: 4 << 20, backing: { file: middle!, format: 'qcow2' } });
  await t.throwsAsync(Qcow2Image.open(top!, { readOnly: true }), { message: /has a backing file.*none was given/ });
  const under = await Qcow2Image.open(middle!, {
    readOnly: true,
    backing: await RawImage.open(base!, { readOnly: true }),
  });
  const image = await Qcow2Image.open(top!, { readOnly: false, backing: under });
  const model = new Uint8Array(image.sizeBytes);
  await image.read(0, model);
  await randomWork(image, model, { seed: 6, steps: 100, maxBytes: 1 << 18 });
  await image.flush();
  await image.close();
  await clean(t, top!);
  writeFileSync(raw!, model);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', top!, raw!]);
});

test('Q12 writing beside internal snapshots leaves them as they were', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const path = files.path('snapshots.qcow2');
  const raw = files.path('snapshots.raw');
  const before = contents(2 << 20, 12);
  writeFileSync(raw, before);
  await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-o', 'cluster_size=4k', raw, path]);
  await mustRun(t, 'qemu-img', ['snapshot', '-c', 'first', path]);
  await mustRun(t, 'qemu-img', ['snapshot', '-c', 'zweiter ü', path]);
  const info = await inspectQcow2(path);
  t.deepEqual(
    info.snapshots.map(({ id, name }) => `${id} ${name}`),
    ['1 first', '2 zweiter ü'],
  );
  const image = await Qcow2Image.open(path, { readOnly: false });
  const model = before.slice();
  await randomWork(image, model, { seed: 13, steps: 100, maxBytes: 1 << 18 });
  await image.flush();
  await image.close();
  await clean(t, path);
  writeFileSync(raw, model);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
  await mustRun(t, 'qemu-img', ['snapshot', '-a', 'first', path]);
  writeFileSync(raw, before);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
  await clean(t, path);
});

test('Q1 an image with the corrupt bit is served read-only', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  for (const bit of [2, 3]) {
    const path = files.path(`bit${bit}.qcow2`);
    await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', path, '4M']);
    const image = readFileSync(path);
    image[79] = bit;
    writeFileSync(path, image);
    await t.throwsAsync(Qcow2Image.open(path, { readOnly: false }), { message: /marked corrupt/ });
    t.is((await readAll(path)).length, 4 << 20);
  }
});

test('Q11 Q14 an external data file and encryption are refused, and no other file is opened', async (t) => {
  if (!hasPrograms(t, 'qemu-img')) return;
  const path = files.path('data.qcow2');
  await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-o', `data_file=${files.path('data.raw')}`, path, '4M']);
  await t.throwsAsync(Qcow2Image.open(path, { readOnly: true }), { message: /external file/ });
  const luks = files.path('luks.qcow2');
  const secret = ['--object', 'secret,id=s,data=abc'];
  const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10';
  await mustRun(t, 'qemu-img', ['create', ...secret, '-f', 'qcow2', '-o', options, luks, '4M']);
  await t.throwsAsync(Qcow2Image.open(luks, { readOnly: true }), { message: /encrypted/ });
});

for (const compression of ['zlib', 'zstd'] as const) {
  test(`Q5 qemu-img reads what we write compressed, and its map shows it: ${compression}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const path = files.path(`packed-${compression}.qcow2`);
    const raw = files.path(`packed-${compression}.raw`);
    const data = contents(4 << 20, 21);
    await createQcow2(path, { sizeBytes: data.length, compression });
    const image = await Qcow2Image.open(path, { readOnly: false });
    await image.writeCompressed(0, data);
    await image.flush();
    // Over compressed clusters, standard ones and compressed ones again.
    await image.write(100_000, new Uint8Array(70_000).fill(7));
    data.fill(7, 100_000, 170_000);
    await image.writeCompressed(1 << 20, new Uint8Array(65_536).fill(8));
    data.fill(8, 1 << 20, (1 << 20) + 65_536);
    await image.close();
    const again = await Qcow2Image.open(path, { readOnly: false });
    await again.writeCompressed(0, data.subarray(0, 4 << 20));
    await again.flush();
    await again.close();
    writeFileSync(raw, data);
    await clean(t, path);
    await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
    const map = JSON.parse(await mustRun(t, 'qemu-img', ['map', '--output=json', '-f', 'qcow2', path])) as object[];
    t.true(map.length > 3);
    t.is(Buffer.compare(await readAll(path), data), 0);
  });
}

test('Q11 clusters go to an external data file that the caller names, raw or not', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
  for (const raw of [false, true]) {
    const path = files.path(`outside-${raw}.qcow2`);
    const dataPath = files.path(`outside-${raw}.data`);
    const flat = files.path(`outside-${raw}.flat`);
    const layout = `data_file=${dataPath},data_file_raw=${raw ? 'on' : 'off'}`;
    await mustRun(t, 'qemu-img', ['create', '-f', 'qcow2', '-o', layout, path, '4M']);
    await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', 'write -P 5 0 300k', '-c', 'write -P 6 1M 1M', path]);
    const model = new Uint8Array(4 << 20).fill(5, 0, 300 << 10).fill(6, 1 << 20, 2 << 20);
    const image = await Qcow2Image.open(path, { readOnly: false, dataFile: FdImageFile.open(dataPath, false) });
    await randomWork(image, model, { seed: 31, steps: 120, maxBytes: 1 << 18 });
    await image.flush();
    await image.close();
    writeFileSync(flat, model);
    await clean(t, path);
    await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, flat]);
    if (raw) await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', dataPath, flat]);
  }
});
