import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type ImgResult, runImg } from '../../fixtures/img_verb.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-img-luks-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const at = (name: string): string => join(directory, name);
const img = (...args: string[]): Promise<ImgResult> => runImg(directory, ...args);
const done = async (t: ExecutionContext, ...args: string[]): Promise<string> => {
  const { status, said, out } = await img(...args);
  t.is(status, 0, said);
  return out;
};
const SECRET = ['--object', 'secret,id=s,data=correct horse'];
const KEY = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1';
const MIB = 1 << 20;

test.before(() => {
  const bytes = new Uint8Array(4 * MIB);
  bytes.fill(0x5a, 0, MIB);
  bytes.fill(0x6b, 3 * MIB, 3 * MIB + 65_536);
  writeFileSync(at('plain.raw'), bytes);
});

test.serial('Q14 --qemu-img makes, fills, shows and compares a luks disk as qemu-img does', async (t) => {
  const options = ['-O', 'luks', '-o', 'key-secret=s,iter-time=1'];
  await done(t, '--qemu-img', 'convert', ...SECRET, ...options, at('plain.raw'), at('disk.luks'));
  // Guessed by its first bytes; nothing of it needs the secret.
  const info = await done(t, '--qemu-img', 'info', at('disk.luks'));
  t.regex(info, /file format: luks\nvirtual size: 4 MiB/);
  t.regex(info, /encrypted: yes/);
  const words = `driver=luks,file.filename=${at('disk.luks')},key-secret=s`;
  const raw = `driver=raw,file.filename=${at('plain.raw')}`;
  await done(t, '--qemu-img', 'compare', ...SECRET, '--image-opts', words, raw);
  await done(t, '--qemu-img', 'info', '--image-opts', words);
  t.regex((await img('--qemu-img', 'compare', '--image-opts', words, raw)).said, /No secret with id 's'/);
  const wrong = ['--object', 'secret,id=s,data=battery staple'];
  t.regex((await img('--qemu-img', 'compare', ...wrong, '--image-opts', words, raw)).said, /fits no key slot/);
  t.false(readFileSync(at('disk.luks')).includes(Buffer.alloc(512, 0x5a)));
});

for (const raw of ['off', 'on']) {
  test.serial(
    `Q11 Q14 an encrypted qcow2 keeps its clusters in a data file, encrypted; data_file_raw=${raw}`,
    async (t) => {
      const [image, data] = [at(`e-${raw}.qcow2`), at(`e-${raw}.data`)];
      const options = `${KEY},data_file=${data}${raw === 'on' ? ',data_file_raw=on' : ''}`;
      await done(t, 'convert', ...SECRET, '-f', 'raw', '-O', 'qcow2', '-o', options, at('plain.raw'), image);
      const words = `driver=qcow2,file.filename=${image},encrypt.key-secret=s,data-file.filename=${data}`;
      const plain = `driver=raw,file.filename=${at('plain.raw')}`;
      await done(t, 'compare', ...SECRET, '--image-opts', words, plain);
      await done(t, 'check', '-f', 'qcow2', image);
      t.false(readFileSync(data).includes(Buffer.alloc(512, 0x5a)), 'nothing in clear text');
      // As qemu-img: the image says where its data is.
      const short = `driver=qcow2,file.filename=${image},encrypt.key-secret=s`;
      await done(t, '--qemu-img', 'compare', ...SECRET, '--image-opts', short, plain);
      t.regex(
        (await img('compare', '--image-opts', words.replace(',encrypt.key-secret=s', ''), plain)).said,
        /passphrase/,
      );
    },
  );
}

test.serial(
  'Q14 a secret for an image that is not encrypted is refused, and passed over as qemu-img does',
  async (t) => {
    await done(t, 'convert', '-f', 'raw', '-O', 'qcow2', at('plain.raw'), at('open.qcow2'));
    const words = `driver=qcow2,file.filename=${at('open.qcow2')},encrypt.key-secret=s`;
    const plain = `driver=raw,file.filename=${at('plain.raw')}`;
    t.regex((await img('compare', ...SECRET, '--image-opts', words, plain)).said, /it is not encrypted/);
    await done(t, '--qemu-img', 'compare', ...SECRET, '--image-opts', words, plain);
  },
);

test.serial(
  'Q14 Q17 measure counts the header of an encrypted image, and all of a disk over another one',
  async (t) => {
    const measured = async (...args: string[]) =>
      JSON.parse(await done(t, 'measure', '--output=json', ...args)) as { required: number; 'fully-allocated': number };
    const plain = await measured('--size=64M', '-O', 'qcow2');
    const encrypted = await measured('--size=64M', '-O', 'qcow2', '-o', `encrypt.format=luks,encrypt.key-secret=s`);
    t.is(encrypted.required - plain.required, 32 * 65_536);
    t.is(encrypted['fully-allocated'] - plain['fully-allocated'], 32 * 65_536);
    // Of a disk that is there, zeroes have to hide what is under it; of an empty one nothing does.
    const options = ['-O', 'qcow2', '-o', 'backing_file=base.raw,backing_fmt=raw'];
    t.deepEqual(await measured('--size=64M', ...options), plain);
    writeFileSync(at('holes.raw'), '');
    truncateSync(at('holes.raw'), 64 * MIB);
    t.is((await measured('-f', 'raw', ...options, at('holes.raw'))).required, plain['fully-allocated']);
    t.is((await measured('--size=1M', '-O', 'luks')).required, readFileSync(at('disk.luks')).length - 3 * MIB);
  },
);

for (const [format, prefix] of [
  ['luks', ''],
  ['qcow2', 'encrypt.'],
] as const) {
  test.serial(`Q14 Q17 amend adds and erases passphrases of ${format}`, async (t) => {
    const image = at(`keys.${format}`);
    const secrets = [...SECRET, '--object', 'secret,id=n,data=another one'];
    const create = format === 'luks' ? 'key-secret=s,iter-time=1' : KEY;
    await done(t, 'convert', ...SECRET, '-f', 'raw', '-O', format, '-o', create, at('plain.raw'), image);
    const words = (id: string): string => `driver=${format},file.filename=${image},${prefix}key-secret=${id}`;
    const amend = (id: string, options: string, ...more: string[]) =>
      img('amend', ...secrets, '--image-opts', '-o', options, ...more, words(id));
    const same = (id: string) =>
      img('compare', ...secrets, '--image-opts', words(id), `driver=raw,file.filename=${at('plain.raw')}`);
    const option = (text: string): string => text.replace(/(?<=^|,)/g, prefix);
    t.is((await amend('s', option('state=active,new-secret=n,iter-time=1'))).status, 0);
    for (const id of ['s', 'n']) t.is((await same(id)).status, 0, id);
    t.is((await amend('n', option('state=inactive,old-secret=s'))).status, 0);
    t.regex((await same('s')).said, /fits no key slot/);
    t.is((await same('n')).status, 0);
    t.regex((await amend('n', option('state=inactive,keyslot=1'))).said, /the only one in use/);
    t.regex((await amend('n', option('state=active'))).said, /new-secret=: it is missing/);
    t.regex((await amend('n', option('new-secret=s'))).said, /state=: it is missing/);
    t.regex((await amend('n', option('state=inactive'))).said, /keyslot=: it is missing/);
    t.regex((await amend('n', option('state=active,new-secret=s,old-secret=n'))).said, /for state=inactive/);
    t.regex((await amend('n', option('state=inactive,keyslot=1,iter-time=1'))).said, /for state=active/);
    t.is((await amend('n', option('state=inactive,keyslot=1'), '--force')).status, 0);
    t.regex((await same('n')).said, /fits no key slot/);
  });
}

test.serial('Q14 Q17 amend does not touch key slots without a passphrase, or of what is not encrypted', async (t) => {
  await done(t, 'convert', '-f', 'raw', '-O', 'qcow2', at('plain.raw'), at('clear.qcow2'));
  const options = 'encrypt.state=active,encrypt.new-secret=s';
  t.regex(
    (await img('amend', ...SECRET, '-f', 'qcow2', '-o', options, at('clear.qcow2'))).said,
    /passphrase .* needed/,
  );
  const words = `driver=qcow2,file.filename=${at('clear.qcow2')},encrypt.key-secret=s`;
  t.regex((await img('amend', ...SECRET, '--image-opts', '-o', options, words)).said, /is not encrypted/);
  t.regex(await done(t, 'amend', '-f', 'luks', '-o', 'help', at('disk.luks')), /keyslot=<num>/);
});
