import { PassThrough } from 'node:stream';
import test from 'ava';
import { firstBytes } from '../../../services/shared/first_bytes.ts';
import { duplexPair, socketPair } from '../../../services/shared/stream_pair.ts';

async function read(stream: NodeJS.ReadableStream): Promise<string> {
  return new Promise((resolve) => stream.once('data', (chunk: Uint8Array) => resolve(new TextDecoder().decode(chunk))));
}

for (const [name, makePair] of [
  ['streams of one process', async () => duplexPair()],
  ['sockets', socketPair],
] as const) {
  test(`firstBytes() of ${name} leaves the bytes to who reads them then`, async (t) => {
    const [near, far] = await makePair();
    t.teardown(() => [near, far].map((stream) => stream.destroy()));
    const any = firstBytes(near);
    far.write('hello');
    t.true(await any);
    // As long as it takes to load a module
    await new Promise((resolve) => setTimeout(resolve, 50));
    t.is(await read(near), 'hello');
    far.write('more');
    t.is(await read(near), 'more');
  });

  test(`firstBytes() of ${name} is false for one that ends with nothing`, async (t) => {
    const [near, far] = await makePair();
    t.teardown(() => [near, far].map((stream) => stream.destroy()));
    const any = firstBytes(near);
    far.end();
    t.false(await any);
  });
}

test('firstBytes() is false for a stream that is destroyed, before and after', async (t) => {
  const late = new PassThrough();
  const any = firstBytes(late);
  late.destroy();
  t.false(await any);
  t.false(await firstBytes(late));
});
