import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { createQcow2, openImage, RawImage } from '../../../../services/nbd/images/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-data-file-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

test('an external data file has one writer, whichever image or program it is opened by', async (t) => {
  const data = join(directory, 'data.raw');
  writeFileSync(data, '');
  truncateSync(data, 1 << 20);
  const images = ['a', 'b'].map((name) => join(directory, `${name}.qcow2`));
  for (const path of images) {
    await createQcow2(path, { sizeBytes: 1 << 20, dataFile: { file: 'data.raw', raw: false } });
  }
  const open = (path: string, readOnly = false) =>
    openImage({ path, format: 'qcow2', dataFile: { path: data } }, { readOnly });
  const first = await open(images[0]!);
  await t.throwsAsync(open(images[1]!), { code: 'EPERM', message: /has it open for writing/ });
  await t.throwsAsync(RawImage.open(data, { readOnly: false }), { code: 'EPERM' });
  await (await open(images[1]!, true)).close();
  await first.inactivate?.();
  const raw = await RawImage.open(data, { readOnly: false });
  await t.throwsAsync(first.activate?.() ?? Promise.resolve(), { code: 'EPERM' });
  await raw.close();
  await first.activate?.();
  await first.close();
  const second = await open(images[1]!);
  await second.close();
});

test('an image that names itself as its data file cannot be written', async (t) => {
  const path = join(directory, 'self.qcow2');
  await createQcow2(path, { sizeBytes: 1 << 20, dataFile: { file: 'self.qcow2', raw: true } });
  await t.throwsAsync(openImage({ path, format: 'qcow2', dataFile: { path } }, { readOnly: false }), { code: 'EPERM' });
});

test('an image that is activated reads what its last owner has added to the data file', async (t) => {
  const data = join(directory, 'growing.raw');
  writeFileSync(data, '');
  const path = join(directory, 'growing.qcow2');
  await createQcow2(path, { sizeBytes: 1 << 20, dataFile: { file: 'growing.raw', raw: false } });
  const source = { path, format: 'qcow2' as const, dataFile: { path: data } };
  const first = await openImage(source, { readOnly: false });
  const second = await openImage(source, { readOnly: false, inactive: true });
  await first.write(300_000, new Uint8Array(512).fill(7));
  await first.inactivate?.();
  await second.activate?.();
  const into = new Uint8Array(512);
  await second.read(300_000, into);
  t.true(into.every((byte) => byte === 7));
  await first.close();
  await second.close();
});
