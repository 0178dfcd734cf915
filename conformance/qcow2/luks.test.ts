import { readFileSync, writeFileSync } from 'node:fs';
import test from 'ava';
import { changeLuksKeys, createLuksHeader, inspectLuks, LuksImage } from '../../services/nbd/images/mod.ts';
import { createQcow2, createSnapshot, FdImageFile, Qcow2Image } from '../../services/nbd/images/qcow2/mod.ts';
import { randomWork } from '../../test/fixtures/random_work.ts';
import { hasPrograms, mustRun, run, scratch } from '../nbd/peers.ts';

// Encrypted disks in both directions: qemu-img makes and reads what we read and make.

const MIB = 1 << 20;
const files = scratch();
test.after.always(() => files.remove());

const passphrase = new TextEncoder().encode('correct horse');
const secret = ['--object', 'secret,id=s,data=correct horse'];

/** Sectors only: less cannot be written to an encrypted disk. */
async function sectorWork(image: Qcow2Image | LuksImage, model: Uint8Array, seed: number): Promise<void> {
  for (let step = 0; step < 60; step++) {
    const at = 512 * ((seed * 7919 + step * 104_729) % (model.length / 512 - 300));
    const bytes = new Uint8Array(512 * (1 + (step % 200))).fill(step + 1);
    if (step % 10 === 9) {
      bytes.fill(0);
      await image.writeZeroes(at, bytes.length, { mayUnmap: true, fast: false });
    } else await image.write(at, bytes);
    model.set(bytes, at);
  }
  await image.flush();
}

async function qemuSame(t: import('ava').ExecutionContext, path: string, driver: string, model: Uint8Array) {
  const raw = `${path}.raw`;
  writeFileSync(raw, model);
  const key = driver === 'luks' ? 'key-secret=s' : 'encrypt.format=luks,encrypt.key-secret=s';
  const options = `driver=${driver},file.driver=file,file.filename=${path},${key}`;
  await mustRun(t, 'qemu-img', [
    'compare',
    ...secret,
    '--image-opts',
    options,
    `driver=raw,file.driver=file,file.filename=${raw}`,
  ]);
}

for (const ours of [true, false]) {
  test(`Q14 encrypted qcow2, made by ${ours ? 'us' : 'qemu-img'}, is read and written by both`, async (t) => {
    t.timeout(120_000);
    if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
    const path = files.path(`luks-${ours}.qcow2`);
    if (ours)
      await createQcow2(path, {
        sizeBytes: 4 * MIB,
        luksHeader: await createLuksHeader({ passphrase, iterations: 2000 }),
      });
    else {
      const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10';
      await mustRun(t, 'qemu-img', ['create', ...secret, '-f', 'qcow2', '-o', options, path, '4M']);
    }
    const key = 'encrypt.format=luks,encrypt.key-secret=s';
    const image = `driver=qcow2,file.driver=file,file.filename=${path},${key}`;
    await mustRun(t, 'qemu-io', [
      ...secret,
      '--image-opts',
      '-c',
      'write -P 5 100k 300k',
      '-c',
      'write -P 6 1M 1M',
      image,
    ]);
    const model = new Uint8Array(4 * MIB).fill(5, 100 << 10, 400 << 10).fill(6, MIB, 2 * MIB);
    const open = await Qcow2Image.open(path, { readOnly: false, passphrase });
    const all = new Uint8Array(4 * MIB);
    await open.read(0, all);
    t.is(Buffer.compare(all, model), 0);
    await sectorWork(open, model, 1);
    await createSnapshot(open, 'then');
    await sectorWork(open, model, 2);
    await open.close();
    t.is(readFileSync(path).indexOf(Buffer.alloc(4096, 5)), -1, 'plain text in the file');
    const report = JSON.parse(
      await mustRun(t, 'qemu-img', ['check', ...secret, '--image-opts', image, '--output=json']),
    );
    t.is(report.corruptions ?? 0, 0);
    t.is(report.leaks ?? 0, 0);
    await qemuSame(t, path, 'qcow2', model);
    const wrong = { readOnly: true, passphrase: new TextEncoder().encode('wrong') };
    await t.throwsAsync(Qcow2Image.open(path, wrong), { code: 'EPERM', message: /fits no key slot/ });
    await t.throwsAsync(Qcow2Image.open(path, { readOnly: true }), { message: /no passphrase was given/ });
  });

  test(`Q14 a raw LUKS disk, made by ${ours ? 'us' : 'qemu-img'}, is read and written by both`, async (t) => {
    t.timeout(120_000);
    if (!hasPrograms(t, 'qemu-img')) return;
    const path = files.path(`raw-${ours}.luks`);
    if (ours) {
      const header = await createLuksHeader({ passphrase, iterations: 2000 });
      writeFileSync(path, Buffer.concat([header, Buffer.alloc(4 * MIB)]));
    } else {
      await mustRun(t, 'qemu-img', ['create', ...secret, '-f', 'luks', '-o', 'key-secret=s,iter-time=10', path, '4M']);
    }
    const image = await LuksImage.open(path, { readOnly: false, passphrase });
    t.is(image.sizeBytes, 4 * MIB);
    const model = new Uint8Array(4 * MIB);
    await image.read(0, model);
    await sectorWork(image, model, 3);
    await image.close();
    await qemuSame(t, path, 'luks', model);
    const { status } = await run('qemu-img', ['info', path]);
    t.is(status, 0);
  });
}

for (const alg of ['sha1', 'sha256', 'sha512'] as const) {
  test(`Q14 passphrases go in and out of a LUKS disk of qemu-img's with ${alg} by both programs`, async (t) => {
    t.timeout(120_000);
    if (!hasPrograms(t, 'qemu-img')) return;
    const path = files.path(`keys-${alg}.luks`);
    const bits = alg === 'sha1' ? ',cipher-alg=aes-128' : '';
    const options = `key-secret=s,iter-time=10,hash-alg=${alg}${bits}`;
    await mustRun(t, 'qemu-img', ['create', ...secret, '-f', 'luks', '-o', options, path, '1M']);
    const text = (words: string): Uint8Array => new TextEncoder().encode(words);
    const secrets = [...secret, '--object', 'secret,id=a,data=ours', '--object', 'secret,id=b,data=theirs'];
    const words = (id: string): string => `driver=luks,file.filename=${path},key-secret=${id}`;
    const opens = async (id: string): Promise<boolean> =>
      (await run('qemu-img', ['compare', ...secrets, '--image-opts', words(id), words(id)])).status === 0;
    await changeLuksKeys(path, passphrase, { kind: 'add', newPassphrase: text('ours'), iterations: 2000, slot: 5 });
    t.true(await opens('a'), 'what we add opens there');
    const amend = ['amend', ...secrets, '--image-opts', '-o', 'state=active,new-secret=b,iter-time=10', words('a')];
    await mustRun(t, 'qemu-img', amend);
    const image = await LuksImage.open(path, { readOnly: true, passphrase: text('theirs') });
    await image.close();
    await changeLuksKeys(path, text('theirs'), { kind: 'erase', oldPassphrase: passphrase });
    t.false(await opens('s'), 'what we erase is gone there');
    t.true(await opens('b'));
    const { slots } = (await inspectLuks(path)).header;
    t.deepEqual(
      [...slots.keys()].filter((index) => slots[index] !== undefined),
      [1, 5],
    );
  });
}

test('Q11 Q14 an encrypted image whose clusters are in a data file is the same to qemu-img', async (t) => {
  t.timeout(120_000);
  if (!hasPrograms(t, 'qemu-img')) return;
  const [path, data] = [files.path('data.qcow2'), files.path('data.raw')];
  const options = `encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,data_file=${data}`;
  await mustRun(t, 'qemu-img', ['create', ...secret, '-f', 'qcow2', '-o', options, path, '4M']);
  const image = await Qcow2Image.open(path, {
    readOnly: false,
    passphrase,
    dataFile: FdImageFile.open(data, false),
  });
  const model = new Uint8Array(4 * MIB);
  await sectorWork(image, model, 7);
  await image.close();
  await qemuSame(t, path, 'qcow2', model);
});

test('Q14 random work on an encrypted image reads back after reopening', async (t) => {
  const path = files.path('random.qcow2');
  const luksHeader = await createLuksHeader({ passphrase, iterations: 1000 });
  await createQcow2(path, { sizeBytes: MIB, clusterBytes: 4096, luksHeader });
  const model = new Uint8Array(MIB);
  const image = await Qcow2Image.open(path, { readOnly: false, passphrase });
  await randomWork(image, model, { seed: 8, steps: 80, maxBytes: 1 << 16 });
  await image.close();
  const again = await Qcow2Image.open(path, { readOnly: true, passphrase });
  const all = new Uint8Array(MIB);
  await again.read(0, all);
  t.is(Buffer.compare(all, model), 0);
});
