import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { TarFile } from '../../../guests/debian/mod.ts';

const folder = mkdtempSync(join(tmpdir(), 'caisson-tar-'));
test.after.always(() => rmSync(folder, { recursive: true }));
let count = 0;

function header(name: string, size: string, type: string): Buffer {
  const block = Buffer.alloc(512);
  block.write(name, 0, 100, 'latin1');
  block.write(size, 124, 12, 'latin1');
  block.write(type, 156, 'latin1');
  block.write('ustar  ', 257, 'latin1');
  return block;
}

function entry(name: string, data: string, type = '0'): Buffer {
  const body = Buffer.alloc(Math.ceil(data.length / 512) * 512);
  body.write(data, 'latin1');
  return Buffer.concat([header(name, data.length.toString(8).padStart(11, '0'), type), body]);
}

function open(...blocks: Buffer[]): TarFile {
  count += 1;
  const path = join(folder, `${count}.tar`);
  writeFileSync(path, Buffer.concat(blocks));
  return new TarFile(path);
}

const END = Buffer.alloc(1024);

test('TarFile gives regular files by path, also with a long name, and no links', (t) => {
  const long = `./usr/${'x'.repeat(150)}/file`;
  using tar = open(
    entry('./usr/', '', '5'),
    entry('./usr/bin/busybox', 'ELF'),
    entry('./usr/link', '', '2'),
    entry('././@LongLink', `${long}\0`, 'L'),
    entry(long.slice(0, 100), 'deep'),
    END,
  );
  t.deepEqual([...tar.paths], ['usr/bin/busybox', long.slice(2)]);
  t.is(Buffer.from(tar.read('usr/bin/busybox')).toString(), 'ELF');
  t.is(Buffer.from(tar.read(long.slice(2))).toString(), 'deep');
  t.throws(() => tar.read('etc/passwd'), { message: /does not hold it/ });
});

test('TarFile refuses an entry longer than the file', (t) => {
  t.throws(() => open(header('./big', '77777777777', '0'), END), { message: /does not fit/ });
});

test('TarFile refuses a length that is not octal', (t) => {
  t.throws(() => open(header('./odd', 'zzz', '0'), END), { message: /does not fit/ });
});

test('TarFile refuses a name of many megabytes', (t) => {
  t.throws(() => open(header('././@LongLink', '40000', 'L'), Buffer.alloc(1 << 15), END), {
    message: /a name of 16384/,
  });
});

test('TarFile refuses an archive that is cut short, and what is no archive', (t) => {
  t.throws(() => open(entry('./a', 'b')), { message: /cut short/ });
  t.throws(() => open(Buffer.alloc(2048, 0x41)), { message: /no tar header/ });
});
