import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import process from 'node:process';
import test from 'ava';
import { socketPair, socketPairs } from '../../../services/shared/stream_pair.ts';

test('socketPair() gives two ends of one stream', async (t) => {
  const [near, far] = await socketPair();
  near.resume();
  far.resume();
  near.write('hello');
  const [chunk] = await once(far, 'data');
  t.is(String(chunk), 'hello');
  far.end('bye');
  t.is(String((await once(near, 'data'))[0]), 'bye');
  near.destroy();
  far.destroy();
});

test('socketPairs() pairs each end with its own', async (t) => {
  const pairs = await socketPairs(4);
  for (const [index, [near, far]] of pairs.entries()) {
    near.write(String(index));
    far.resume();
  }
  for (const [index, [near, far]] of pairs.entries()) {
    t.is(String((await once(far, 'data'))[0]), String(index));
    near.destroy();
    far.destroy();
  }
});

test('socketPair() leaves no directory behind', async (t) => {
  const [near, far] = await socketPair();
  near.destroy();
  far.destroy();
  // Other tests make pairs at the same time; directories of this process older than now would stay.
  t.true((await readdir(tmpdir())).filter((name) => name.startsWith('caisson-link-')).length < 16);
});

test('socketPair() ends can be inherited by a child through stdio', async (t) => {
  const [near, far] = await socketPair();
  const child = spawn(
    process.execPath,
    [
      '-e',
      `const s = new (require('net').Socket)({ fd: 3 }); s.on('data', (d) => s.end('got ' + d)); s.on('end', () => {});`,
    ],
    { stdio: ['ignore', 'inherit', 'inherit', far] },
  );
  far.destroy();
  near.resume();
  near.write('descriptor');
  t.is(String((await once(near, 'data'))[0]), 'got descriptor');
  near.destroy();
  const [code] = await once(child, 'exit');
  t.is(code, 0);
});
