import test from 'ava';
import { encodeCpio } from '../../../guests/debian/mod.ts';

const text = (value: string) => new TextEncoder().encode(value);

test('encodeCpio() writes a newc header of 110 bytes, name, data and trailer, each padded to 4', (t) => {
  const archive = Buffer.from(encodeCpio([{ kind: 'file', path: 'ab', mode: 0o644, bytes: text('hello') }]));
  const fields = ['00000001', '000081a4', '00000000', '00000000', '00000001', '00000000', '00000005'];
  const rest = ['00000000', '00000000', '00000000', '00000000', '00000003', '00000000'];
  t.is(archive.toString('latin1', 0, 110), `070701${[...fields, ...rest].join('')}`);
  t.is(archive.toString('latin1', 110, 124), 'ab\0\0\0\0hello\0\0\0');
  t.is(archive.length % 4, 0);
  t.true(archive.toString('latin1').includes('TRAILER!!!\0'));
});

test('encodeCpio() writes device numbers and link targets', (t) => {
  const archive = Buffer.from(
    encodeCpio([
      { kind: 'directory', path: 'dev', mode: 0o755 },
      { kind: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
      { kind: 'symlink', path: 'sh', target: 'busybox' },
    ]),
  ).toString('latin1');
  const console = archive.indexOf('dev/console') - 110;
  t.is(archive.slice(console + 14, console + 22), '00002180', 'mode: character device, 0600');
  t.is(archive.slice(console + 78, console + 94), '0000000500000001', 'rdevmajor, rdevminor');
  t.true(archive.includes('busybox'));
});

test('encodeCpio() gives the same bytes for the same entries', (t) => {
  const entries = [{ kind: 'file', path: 'x', mode: 0o600, bytes: text('y') }] as const;
  t.deepEqual(encodeCpio(entries), encodeCpio(entries));
});

test('encodeCpio() refuses absolute paths and a path that is there twice', (t) => {
  t.throws(() => encodeCpio([{ kind: 'directory', path: '/etc', mode: 0o755 }]), { message: /not a relative path/ });
  const twice = { kind: 'directory', path: 'etc', mode: 0o755 } as const;
  t.throws(() => encodeCpio([twice, twice]), { message: /there twice/ });
});
