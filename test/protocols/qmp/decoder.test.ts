import test from 'ava';
import { QmpDecoder, type QmpFrame } from '../../../protocols/qmp/mod.ts';
import { sameForAnySplit } from '../../macros/codec.ts';

const bytes = (text: string) => new TextEncoder().encode(text);

function frames(chunks: Uint8Array[], options?: ConstructorParameters<typeof QmpDecoder>[0]): string[] {
  const decoder = new QmpDecoder(options);
  return chunks.flatMap((chunk) => decoder.push(chunk)).map(show);
}

function show(frame: QmpFrame): string {
  return frame.kind === 'message' ? new TextDecoder().decode(frame.bytes) : `! ${frame.text}`;
}

test('QmpDecoder gives the same frames for any split', (t) => {
  sameForAnySplit(
    t,
    bytes('{"a":"}\\"{"}{"b":[1,\n2]} \r\n foo\n[\'x]\']\n"scalar"\n{"c":"\u0001"}ignored\n{"é":1}'),
    (chunks) => frames(chunks),
  );
});

test('QmpDecoder needs no line ends between objects', (t) => {
  t.deepEqual(frames([bytes('{}{"a":1}[]')]), ['{}', '{"a":1}', '[]']);
});

test('QmpDecoder reads an object over several lines', (t) => {
  t.deepEqual(frames([bytes('{\n "a": 1\n}\n')]), ['{\n "a": 1\n}']);
});

test('QmpDecoder drops the rest of a line with a control character in a text, and goes on', (t) => {
  t.deepEqual(frames([bytes('{"a":"b\u0007"} {"lost":1}\n{"found":1}')]), [
    '! JSON parse error, control character in string',
    '{"found":1}',
  ]);
});

test('QmpDecoder gets out of an unterminated text at the end of its line', (t) => {
  t.deepEqual(frames([bytes('{"a":"b\n{"found":1}')]), [
    '! JSON parse error, control character in string',
    '{"found":1}',
  ]);
});

test('QmpDecoder refuses 0xff outside texts, and goes on', (t) => {
  t.deepEqual(frames([Uint8Array.of(0x7b, 0xff, 0x0a), bytes('{}')]), [
    '! JSON parse error, stray control character',
    '{}',
  ]);
});

test('QmpDecoder refuses a message of 1 MiB and one byte, keeps nothing of it, and goes on', (t) => {
  const decoder = new QmpDecoder();
  const big = bytes(`{"a":"${'x'.repeat((1 << 20) + 10)}"}\n{"found":1}`);
  t.deepEqual(decoder.push(big).map(show), ['! JSON token size limit exceeded', '{"found":1}']);
});

test('QmpDecoder refuses a line of 1 GiB without buffering it', (t) => {
  const decoder = new QmpDecoder({ maxMessageBytes: 4096 });
  const chunk = bytes('a'.repeat(1 << 16));
  let seen = 0;
  for (let i = 0; i < 100; i++) seen += decoder.push(chunk).length;
  t.is(seen, 1);
});

test('QmpDecoder refuses depth 10^6', (t) => {
  t.deepEqual(frames([bytes(`${'['.repeat(1_000_000)}\n{}`)]), ['! JSON nesting depth limit exceeded', '{}']);
});

test('QmpDecoder.end() refuses a stream that ends inside a message', (t) => {
  const decoder = new QmpDecoder();
  decoder.push(bytes('{"a":'));
  t.throws(() => decoder.end(), { code: 'ERR_WIRE_TRUNCATED' });
  const done = new QmpDecoder();
  done.push(bytes('{}\r\n'));
  t.notThrows(() => done.end());
});
