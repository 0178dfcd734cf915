import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { createQcow2, resolveChain } from '../../../services/nbd/images/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-policy-'));
const root = join(directory, 'root');
mkdirSync(join(root, 'sub'), { recursive: true });
writeFileSync(join(directory, 'outside.raw'), 'secret');
writeFileSync(join(root, 'base.raw'), 'base');
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

const sizeBytes = 1 << 20;

test('Q10 resolveChain() follows names relative to the overlay, inside the folder', async (t) => {
  const middle = join(root, 'sub', 'middle.qcow2');
  const top = join(root, 'top.qcow2');
  await createQcow2(middle, { sizeBytes, backing: { file: '../base.raw', format: 'raw' } });
  await createQcow2(top, { sizeBytes, backing: { file: 'sub/middle.qcow2', format: 'qcow2' } });
  t.deepEqual(await resolveChain(top, 'qcow2', { root }), {
    path: top,
    format: 'qcow2',
    backing: { path: middle, format: 'qcow2', backing: { path: join(root, 'base.raw'), format: 'raw' } },
  });
});

for (const [index, [file, format, expected]] of (
  [
    ['json:{"driver":"file","filename":"/etc/passwd"}', 'raw', /names a protocol/],
    ['nbd://localhost/', 'raw', /names a protocol/],
    ['file:base.raw', 'raw', /names a protocol/],
    ['/etc/passwd', 'raw', /not inside the folder/],
    ['../outside.raw', 'raw', /not inside the folder/],
    ['link.raw', 'raw', /not inside the folder/],
    ['nowhere.raw', 'raw', /cannot be opened: ENOENT/],
    ['base.raw', '', /is not said/],
    ['base.raw', 'vmdk3', /is not known/],
  ] as const
).entries()) {
  test(`Q10 resolveChain() refuses the backing file ${file || '(empty)'} of format ${format || '(none)'}`, async (t) => {
    const top = join(root, `refused-${index}.qcow2`);
    try {
      symlinkSync(join(directory, 'outside.raw'), join(root, 'link.raw'));
    } catch {
      // made by another of these tests
    }
    await createQcow2(top, { sizeBytes, backing: { file, format } });
    await t.throwsAsync(resolveChain(top, 'qcow2', { root }), { code: 'EINVAL', message: expected });
    rmSync(top);
  });
}

test('Q10 resolveChain() finds an image that is under itself, and cycles of three', async (t) => {
  const [a, b, c] = ['a', 'b', 'c'].map((name) => join(root, `cycle-${name}.qcow2`)) as [string, string, string];
  await createQcow2(a, { sizeBytes, backing: { file: 'cycle-b.qcow2', format: 'qcow2' } });
  await createQcow2(b, { sizeBytes, backing: { file: 'cycle-c.qcow2', format: 'qcow2' } });
  await createQcow2(c, { sizeBytes, backing: { file: 'cycle-a.qcow2', format: 'qcow2' } });
  await t.throwsAsync(resolveChain(a, 'qcow2', { root }), { message: /comes twice/ });
  const self = join(root, 'self.qcow2');
  await createQcow2(self, { sizeBytes, backing: { file: self, format: 'qcow2' } });
  await t.throwsAsync(resolveChain(self, 'qcow2', { root }), { message: /comes twice/ });
});

test('Q10 resolveChain() stops at sixteen images', async (t) => {
  for (let index = 0; index < 18; index++) {
    const backing = { file: `deep-${index - 1}.qcow2`, format: 'qcow2' };
    await createQcow2(join(root, `deep-${index}.qcow2`), { sizeBytes, ...(index === 0 ? {} : { backing }) });
  }
  t.is((await resolveChain(join(root, 'deep-15.qcow2'), 'qcow2', { root })).format, 'qcow2');
  await t.throwsAsync(resolveChain(join(root, 'deep-16.qcow2'), 'qcow2', { root }), { message: /more than 16/ });
});

test('Q11 resolveChain() follows a data file by the same rules', async (t) => {
  const path = join(root, 'data.qcow2');
  await createQcow2(path, { sizeBytes, dataFile: { file: 'base.raw', raw: false } });
  t.like(await resolveChain(path, 'qcow2', { root }), { dataFile: { path: join(root, 'base.raw') } });
  const evil = join(root, 'evil.qcow2');
  await createQcow2(evil, { sizeBytes, dataFile: { file: '/etc/shadow', raw: true } });
  await t.throwsAsync(resolveChain(evil, 'qcow2', { root }), { message: /data file.*not inside/ });
  // The caller's word for a file that was moved: the name inside leads nowhere then, and is not looked at.
  const moved = join(root, 'moved.qcow2');
  await createQcow2(moved, { sizeBytes, dataFile: { file: 'not-there.raw', raw: false } });
  await t.throwsAsync(resolveChain(moved, 'qcow2', { root }), { message: /data file.*cannot be opened/ });
  const dataFile = join(root, 'base.raw');
  t.like(await resolveChain(moved, 'qcow2', { root, dataFile }), { dataFile: { path: dataFile } });
  await t.throwsAsync(resolveChain(moved, 'qcow2', { root, dataFile: moved }), { message: /comes twice/ });
});
