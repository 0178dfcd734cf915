import { duplexPair } from 'node:stream';
import test from 'ava';
import { SerialStreams } from '../../library/serial_streams.ts';

const soon = () => new Promise<void>((resolve) => setTimeout(resolve, 5));

async function readAll(readable: ReadableStream<Uint8Array>): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const part of readable) parts.push(part);
  return Buffer.concat(parts).toString('latin1');
}

test('SerialStreams: what came before somebody reads is read first', async (t) => {
  const [near, far] = duplexPair();
  const streams = new SerialStreams(near);
  far.write('one ');
  far.write('two ');
  await soon();
  const { readable } = streams;
  t.is(streams.readable, readable);
  far.end('three');
  t.is(await readAll(readable), 'one two three');
});

test('SerialStreams: a guest whose output nobody reads does not wait, and its first words are kept', async (t) => {
  const [near, far] = duplexPair();
  const streams = new SerialStreams(near);
  for (let i = 0; i < 100; i++) {
    await new Promise<void>((resolve) => far.write(String(i % 10).repeat(10_000), () => resolve()));
  }
  far.end();
  await soon();
  const text = await readAll(streams.readable);
  t.is(text.length, 65536);
  t.true(text.startsWith('0'.repeat(10_000)));
});

test('SerialStreams: once somebody reads, the other end waits for it', async (t) => {
  const [near, far] = duplexPair();
  const reader = new SerialStreams(near).readable.getReader();
  let written = 0;
  for (; written < 100; written++) {
    const taken = new Promise<true>((resolve) => far.write('x'.repeat(10_000), () => resolve(true)));
    if ((await Promise.race([taken, soon()])) !== true) break;
  }
  t.true(written < 100);
  let bytes = 0;
  while (bytes < written * 10_000) bytes += (await reader.read()).value!.length;
  t.pass();
});
