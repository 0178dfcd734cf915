import test from 'ava';
import { errorText, plainErrorText } from '../../cli/format.ts';

for (const [given, expected] of [
  ["ENOENT: no such file or directory, open 'x.img'", 'Cannot open x.img: no such file or directory (ENOENT)'],
  ["top: ENOENT: no such file or directory, open 'a, b'", 'top: Cannot open a, b: no such file or directory (ENOENT)'],
  ['EIO: i/o error, fsync', 'Cannot fsync: i/o error (EIO)'],
  [
    'listen EADDRINUSE: address already in use 127.0.0.1:10809',
    'Cannot listen on 127.0.0.1:10809: address already in use (EADDRINUSE); another program listens there, choose another port',
  ],
  [
    'listen EADDRINUSE: address already in use :::10809',
    'Cannot listen on :::10809: address already in use (EADDRINUSE); another program listens there, choose another port',
  ],
  [
    'listen ENOENT: no such file or directory /none/x.sock',
    'Cannot listen on /none/x.sock: no such file or directory (ENOENT); its folder is not there',
  ],
  [
    'listen EACCES: permission denied /none/x.sock',
    'Cannot listen on /none/x.sock: permission denied (EACCES); is its folder there, and may you write to it?',
  ],
  ['connect ECONNREFUSED 127.0.0.1:1', 'Cannot connect to 127.0.0.1:1: nobody listens there (ECONNREFUSED)'],
  [
    'nbd://host/: connect ENETUNREACH 192.0.2.1:1 - Local (0.0.0.0:0)',
    'nbd://host/: Cannot connect to 192.0.2.1:1: there is no way to that network (ENETUNREACH)',
  ],
  ['Cannot use SIZE 1Q: expected a size', 'Cannot use SIZE 1Q: expected a size'],
  [
    'Cannot accept qcow2 header magic: found 0x0, expected 0x514649fb',
    'Cannot accept qcow2 header magic: found 0x0, expected 0x514649fb; so it is no qcow2 image',
  ],
] as const) {
  test(`plainErrorText() of ${given}`, (t) => {
    t.is(plainErrorText(new Error(given)), expected);
  });
}

test('plainErrorText() has the command’s words for what an image needs', (t) => {
  const words = { under: 'U', passphrase: 'P', readOnly: 'R' };
  const backing = new Error('Cannot open the qcow2 image: it has a backing file, "b", and none was given');
  t.regex(plainErrorText(backing, words), /none was given; U$/);
  t.regex(plainErrorText(backing), /none was given$/);
  const locked = new Error('Cannot open the LUKS image: it is encrypted, and no passphrase was given');
  t.regex(plainErrorText(locked, words), /no passphrase was given; P$/);
  const read = new Error('Cannot open the image for writing: images of this kind are only read; open it read-only');
  t.regex(plainErrorText(read, words), /open it read-only; R$/);
});

test('errorText() lets no control character through', (t) => {
  t.is(errorText(new Error('a\u001b[31mb')), 'a?[31mb');
  t.is(plainErrorText(new Error("ENOENT: no such file, open 'a\u001bb'")), 'Cannot open a?b: no such file (ENOENT)');
});
