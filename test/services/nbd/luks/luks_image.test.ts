import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { createLuksHeader, DirtyBitmap, LuksImage } from '../../../../services/nbd/images/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-luks-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const passphrase = new TextEncoder().encode('a secret');

async function disk(name: string, change: (view: DataView) => void): Promise<string> {
  const header = await createLuksHeader({ passphrase, iterations: 10 });
  change(new DataView(header.buffer, header.byteOffset, header.byteLength));
  const path = join(directory, name);
  writeFileSync(path, header);
  truncateSync(path, header.length + (1 << 20));
  return path;
}

test('Q14 a raw LUKS disk keeps what is written to it, and not in clear text', async (t) => {
  const path = await disk('good.luks', () => {});
  const image = await LuksImage.open(path, { readOnly: false, passphrase });
  t.is(image.sizeBytes, 1 << 20);
  const data = new Uint8Array(1024).fill(0x5a);
  await image.write(512, data);
  await image.flush();
  await image.close();
  t.false(readFileSync(path).includes(Buffer.from(data)));
  const again = await LuksImage.open(path, { readOnly: true, passphrase });
  const into = new Uint8Array(1024);
  await again.read(512, into);
  t.deepEqual(into, data);
  await again.close();
});

test('Q14 a raw LUKS disk that begins inside its own header is refused: a write would destroy all keys', async (t) => {
  // payload-offset, in sectors: 0 says that the header is in another file
  for (const sectors of [0, 1]) {
    const path = await disk(`inside${sectors}.luks`, (view) => view.setUint32(104, sectors));
    await t.throwsAsync(LuksImage.open(path, { readOnly: false, passphrase }), {
      message: sectors === 0 ? /the disk begins at 0, inside the header/ : /key material inside the disk/,
    });
  }
});

test('Q13 Q14 a write to a LUKS disk that fails is in the bitmaps: part of it may be there', async (t) => {
  const path = await disk('fails.luks', () => {});
  const image = await LuksImage.open(path, { readOnly: false, passphrase });
  const bitmap = new DirtyBitmap(image.sizeBytes);
  image.bitmaps.add('b', bitmap);
  await image.close();
  await t.throwsAsync(image.write(0, new Uint8Array(512)));
  t.true(bitmap.isDirty(0));
});
