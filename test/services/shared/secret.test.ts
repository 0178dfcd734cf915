import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { readSecret, SecretError } from '../../../services/shared/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-secret-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

function file(name: string, bytes: Uint8Array | string): string {
  const path = join(directory, name);
  writeFileSync(path, bytes);
  return path;
}

test('readSecret() takes all of a file, also its line end, as QEMU does', (t) => {
  t.is(readSecret({ file: file('plain', 'geheim ß\n') }), 'geheim ß\n');
  t.is(readSecret({ file: file('mark', '\ufeffx') }), '\ufeffx');
  t.is(readSecret({ data: 'geheim' }), 'geheim');
});

test('readSecret() decodes base64, with line ends in it', (t) => {
  t.is(readSecret({ data: Buffer.from('geheim').toString('base64'), format: 'base64' }), 'geheim');
  t.is(readSecret({ file: file('base64', 'Z2Vo\nZWlt\n'), format: 'base64' }), 'geheim');
});

for (const [what, source, message] of [
  ['base64 that is none', { data: 'geheim!', format: 'base64' }, /not base64/],
  ['bytes that are no UTF-8', { file: file('bytes', Uint8Array.of(0xff, 0xfe)) }, /not UTF-8/],
  ['a file that is not there', { file: join(directory, 'none') }, /ENOENT/],
  ['a folder', { file: directory }, /EISDIR/],
  ['a file without end', { file: '/dev/zero' }, /more than 65536 bytes/],
] as const) {
  test(`readSecret() refuses ${what}, and says nothing of what is in it`, (t) => {
    const error = t.throws(() => readSecret(source), { instanceOf: SecretError, code: 'ERR_SECRET', message });
    t.notRegex(error.message, /geheim/);
  });
}
