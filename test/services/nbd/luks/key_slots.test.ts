import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  type AddKey,
  changeLuksKeys,
  createLuksHeader,
  type EraseKeys,
  inspectLuks,
  LuksImage,
} from '../../../../services/nbd/images/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-luks-keys-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const secret = (text: string): Uint8Array => new TextEncoder().encode(text);
const add = (text: string, more: Partial<AddKey> = {}): AddKey => ({
  kind: 'add',
  newPassphrase: secret(text),
  iterations: 10,
  ...more,
});
const erase = (more: Partial<EraseKeys>): EraseKeys => ({ kind: 'erase', ...more });

/** A disk that "first" opens, with a byte pattern in its first sector */
async function disk(name: string, change: (view: DataView) => void = () => {}): Promise<string> {
  const path = join(directory, name);
  const header = await createLuksHeader({ passphrase: secret('first'), iterations: 10 });
  change(new DataView(header.buffer, header.byteOffset, header.byteLength));
  writeFileSync(path, header);
  truncateSync(path, header.length + 65_536);
  const image = await LuksImage.open(path, { readOnly: false, passphrase: secret('first') });
  await image.write(0, new Uint8Array(512).fill(0x5a));
  await image.close();
  return path;
}

/** Whether a passphrase opens the disk, and reads what was written. */
async function opens(path: string, text: string): Promise<boolean> {
  try {
    const image = await LuksImage.open(path, { readOnly: true, passphrase: secret(text) });
    const into = new Uint8Array(512);
    await image.read(0, into);
    await image.close();
    return into.every((byte) => byte === 0x5a);
  } catch {
    return false;
  }
}

async function refused(t: ExecutionContext, path: string, change: AddKey | EraseKeys, message: RegExp): Promise<void> {
  const before = readFileSync(path);
  await t.throwsAsync(changeLuksKeys(path, secret('first'), change), { message });
  t.true(readFileSync(path).equals(before), 'nothing changed');
}

test('Q14 a passphrase is added to a LUKS disk: both open it', async (t) => {
  const path = await disk('add.luks');
  await changeLuksKeys(path, secret('first'), add('second'));
  await changeLuksKeys(path, secret('second'), add('third', { slot: 7 }));
  for (const text of ['first', 'second', 'third']) t.true(await opens(path, text), text);
  const { header } = await inspectLuks(path);
  t.deepEqual(
    [...header.slots.keys()].filter((index) => header.slots[index] !== undefined),
    [0, 1, 7],
  );
});

test('Q14 a passphrase is erased by itself or by its slot, and its key material is gone from the file', async (t) => {
  const path = await disk('erase.luks');
  await changeLuksKeys(path, secret('first'), add('second'));
  const { header } = await inspectLuks(path);
  const from = header.materialOffsets[1]!;
  const material = readFileSync(path).subarray(from, from + 64 * 4000);
  await changeLuksKeys(path, secret('first'), add('second', { slot: 6 }));
  await changeLuksKeys(path, secret('first'), erase({ oldPassphrase: secret('second') }));
  t.false(await opens(path, 'second'));
  t.true(await opens(path, 'first'));
  const after = readFileSync(path);
  for (let at = 0; at < material.length; at += 4096) t.false(after.includes(material.subarray(at, at + 512)));
  await changeLuksKeys(path, secret('first'), add('third'));
  await changeLuksKeys(path, secret('third'), erase({ slot: 0 }));
  t.false(await opens(path, 'first'));
  t.true(await opens(path, 'third'));
});

test('Q14 what would lose the disk or another passphrase is refused without force', async (t) => {
  const path = await disk('refuse.luks');
  await refused(t, path, add('x', { slot: 0 }), /slot 0 is in use/);
  await refused(t, path, add('x', { slot: 8 }), /slot 8, expected one from 0 to 7/);
  await refused(t, path, erase({ slot: 0 }), /only one in use/);
  await refused(t, path, erase({ oldPassphrase: secret('first') }), /all key slots in use have this passphrase/);
  await refused(t, path, erase({ oldPassphrase: secret('none') }), /no key slot has/);
  await refused(t, path, erase({ slot: 3 }), /slot 3 is not in use/);
  await refused(t, path, erase({ slot: 0, oldPassphrase: secret('none'), force: true }), /another passphrase/);
  await refused(t, path, erase({}), /neither a key slot nor/);
  await t.throwsAsync(changeLuksKeys(path, secret('wrong'), add('x')), { message: /fits no key slot/ });
  await changeLuksKeys(path, secret('first'), add('second', { slot: 0, force: true }));
  t.false(await opens(path, 'first'));
  t.true(await opens(path, 'second'));
  await changeLuksKeys(path, secret('second'), erase({ slot: 0, force: true }));
  t.false(await opens(path, 'second'));
});

test('Q14 a ninth passphrase is refused, and so are more iterations than a disk may ask for', async (t) => {
  const path = await disk('full.luks');
  await refused(t, path, add('x', { iterations: 64_000_000 }), /iterations of all key slots together, limit is/);
  for (let slot = 1; slot < 8; slot++) await changeLuksKeys(path, secret('first'), add('x'));
  await refused(t, path, add('x'), /all key slots are in use/);
});

test('Q14 a free key slot whose place a header puts over the disk or another key is not written', async (t) => {
  // key-material-offset of slot 1, in sectors
  for (const [name, sectors] of [
    ['header', 0],
    ['slot 0', 9],
    ['the disk', 4096],
    ['behind the end', 0xffff_ffff],
  ] as const) {
    const path = await disk(`place-${sectors}.luks`, (view) => view.setUint32(208 + 48 + 40, sectors));
    await refused(t, path, add('x', { slot: 1 }), /has its place at \d+, over another part/);
    t.true(await opens(path, 'first'), name);
  }
});

test('Q14 key slots of a disk that a writer has open stay as they are', async (t) => {
  const path = await disk('locked.luks');
  const image = await LuksImage.open(path, { readOnly: false, passphrase: secret('first') });
  await refused(t, path, add('x'), /in use|lock/i);
  await image.close();
});
