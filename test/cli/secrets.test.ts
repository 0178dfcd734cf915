import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { parseImageWords } from '../../cli/drives.ts';
import { toImageSource, withSecrets } from '../../cli/encryption.ts';
import { parseVmArguments } from '../../cli/options.ts';
import { isSecret, parseSecret, Secrets } from '../../cli/secrets.ts';
import { UsageError } from '../../cli/usage_error.ts';
import { planTarget } from '../../cli/verbs/img/target.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-secrets-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const file = join(directory, 'passphrase');
writeFileSync(file, 'geheim');

test('a secret is in a file or in the words themselves', (t) => {
  t.deepEqual(parseSecret('-object', `secret,id=s,file=${file}`), { id: 's', source: { file, format: 'raw' } });
  t.deepEqual(parseSecret('-object', 'qom-type=secret,id=s,data=a,,b,format=base64').source, {
    data: 'a,b',
    format: 'base64',
  });
  t.true(isSecret('secret,id=s'));
  t.false(isSecret('tls-creds-psk,id=secret'));
});

for (const [what, text] of [
  ['a comma in its data', 'secret,id=s,data=geheim,geheimer'],
  ['a comma and a sign in its data', 'secret,id=s,data=geheim,geheimer=1'],
  ['two commas in its data', 'secret,id=s,data=geheim,,,=geheimer'],
  ['neither file nor data', 'secret,id=s'],
  ['both file and data', 'secret,id=s,file=a,data=geheim'],
  ['a secret under a secret', 'secret,id=s,data=geheim,keyid=k,iv=00'],
  ['a format that is none', 'secret,id=s,data=geheim,format=hex'],
] as const) {
  test(`a secret with ${what} is refused, and not repeated`, (t) => {
    const error = t.throws(() => parseSecret('--object', text), { instanceOf: UsageError });
    t.notRegex(error.message, /geheim/);
  });
}

test('disks name their secrets as QEMU has it, on whatever side of them these stand', (t) => {
  const { options } = parseVmArguments([
    '-drive',
    'file=a.qcow2,format=qcow2,encrypt.format=luks,encrypt.key-secret=s,backing.driver=luks,backing.file.filename=b.luks,backing.key-secret=t',
    '-blockdev',
    '{"driver":"luks","node-name":"n","key-secret":"s","file":{"driver":"file","filename":"/c.luks"}}',
    '-device',
    'virtio-blk-pci,drive=n',
    '-object',
    `secret,id=s,file=${file}`,
    '-object',
    'secret,id=t,data=x',
  ]);
  const secret = { file, format: 'raw' } as const;
  t.like(options.disks[0], { format: 'qcow2', secret, backing: { format: 'luks', secret: { data: 'x' } } });
  t.like(options.disks[1], { id: 'n', format: 'luks', secret });
});

for (const [what, words, message] of [
  ['a secret that is not there', 'format=luks,key-secret=s', 'no -object secret has this id'],
  ['a key for a raw disk', 'format=raw,key-secret=s', 'raw has no secrets'],
  ['the key of luks for qcow2', 'format=qcow2,key-secret=s', 'it is encrypt.key-secret='],
  ['encryption of a raw disk', 'format=raw,encrypt.key-secret=s', 'images of format raw have no such option'],
  ['the old encryption', 'format=qcow2,encrypt.format=aes,encrypt.key-secret=s', 'found aes, expected luks'],
  ['encryption without a key', 'format=qcow2,encrypt.format=luks', 'it is missing'],
  ['an unknown word of it', 'format=qcow2,encrypt.key-secret=s,encrypt.iter-time=3', 'unknown for an image'],
] as const) {
  test(`-drive refuses ${what}`, (t) => {
    const error = t.throws(() => parseVmArguments(['-drive', `file=a,${words}`]), { instanceOf: UsageError });
    t.true(error.message.includes(message), error.message);
  });
}

test('--image-opts names an image with what is under it', (t) => {
  const secrets = new Secrets('--object', [parseSecret('--object', `secret,id=s,file=${file}`)], { read: true });
  const words = parseImageWords(
    '--image-opts',
    'driver=qcow2,file.driver=file,file.filename=/a,encrypt.key-secret=s,backing.driver=raw,backing.file.filename=/b',
  );
  t.deepEqual(toImageSource(withSecrets(words, secrets)), {
    path: '/a',
    format: 'qcow2',
    passphrase: 'geheim',
    backing: { path: '/b', format: 'raw' },
  });
  t.throws(() => parseImageWords('--image-opts', 'file.filename=/a'), { message: /driver= is missing/ });
  t.throws(() => parseImageWords('--image-opts', '/a'), { instanceOf: UsageError });
  t.throws(() => parseImageWords('--image-opts', 'driver=luks,file.filename=/a,backing.driver=raw'), {
    message: /have nothing under them/,
  });
});

for (const [what, format, options, message] of [
  ['luks without a key', 'luks', '', 'key-secret= is missing'],
  ['luks with another cipher', 'luks', 'key-secret=s,cipher-alg=serpent-256', 'expected aes-256'],
  ['qcow2 with a key and no method', 'qcow2', 'encrypt.key-secret=s', 'expected both'],
  ['qcow2 with a method and no key', 'qcow2', 'encrypt.format=luks', 'expected both'],
  ['qcow2 with the old method', 'qcow2', 'encrypt.format=aes,encrypt.key-secret=s', 'protects nothing'],
  ['a time without a key', 'luks', 'iter-time=10', 'without key-secret='],
] as const) {
  test(`no image is made of ${what}`, (t) => {
    const secrets = new Secrets('--object', [parseSecret('--object', 'secret,id=s,data=x')]);
    const error = t.throws(() => planTarget({ format, sizeBytes: 512, options, secrets }), { instanceOf: UsageError });
    t.true(error.message.includes(message), error.message);
  });
}
