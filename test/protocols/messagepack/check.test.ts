import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { checkMessagePack } from '../../../protocols/messagepack/mod.ts';
import { encodeMessagePack } from '../../../services/shared/messagepack.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';

const sample = encodeMessagePack({
  id: 7,
  method: 'listen',
  params: { list: [1, -1, 2.5, null, true, 1n << 40n], bytes: new Uint8Array(300), text: 'grüße' },
});

function refuses(t: import('ava').ExecutionContext, bytes: number[], code: string): void {
  const error = t.throws(() => checkMessagePack(Uint8Array.from(bytes)), { instanceOf: WireError });
  t.is(error?.code, code as never);
}

test('checkMessagePack() accepts what encodeMessagePack() makes', (t) => {
  t.notThrows(() => checkMessagePack(sample));
});

test('checkMessagePack() refuses every truncation', (t) => {
  refusesEveryTruncation(t, sample, checkMessagePack);
});

test('checkMessagePack() gives a value or WireError for every single-byte change', (t) => {
  survivesEveryByteChange(t, sample, checkMessagePack);
});

test('checkMessagePack() refuses a record extension', (t) => {
  // fixext1 type 0x72, the record definition of msgpackr
  refuses(t, [0xd4, 0x72, 0x40, 0x91, 0xa1, 0x61, 0x01], 'ERR_WIRE_VALUE');
});

test('checkMessagePack() refuses every extension type and the unused byte', (t) => {
  for (const token of [0xc1, 0xc7, 0xc8, 0xc9, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8]) {
    refuses(t, [token, 0, 0, 0, 0, 0, 0, 0, 0], 'ERR_WIRE_VALUE');
  }
});

test('checkMessagePack() refuses nesting of a million lists', (t) => {
  const bytes = new Uint8Array(1_000_001).fill(0x91);
  bytes[1_000_000] = 0xc0;
  t.is(t.throws(() => checkMessagePack(bytes), { instanceOf: WireError })?.code, 'ERR_WIRE_LIMIT');
});

test('checkMessagePack() refuses a list that announces 4 Gi items and has none', (t) => {
  refuses(t, [0xdd, 0xff, 0xff, 0xff, 0xff], 'ERR_WIRE_TRUNCATED');
  refuses(t, [0xdf, 0xff, 0xff, 0xff, 0xff], 'ERR_WIRE_TRUNCATED');
});

test('checkMessagePack() refuses more values than the limit', (t) => {
  const bytes = new Uint8Array(5 + 70_000).fill(0xc0);
  bytes.set([0xdd, 0, 1, 0x11, 0x70]);
  t.is(t.throws(() => checkMessagePack(bytes), { instanceOf: WireError })?.code, 'ERR_WIRE_LIMIT');
});

test('checkMessagePack() refuses a key that is a number, __proto__, or comes twice', (t) => {
  refuses(t, [0x81, 0x01, 0x01], 'ERR_WIRE_VALUE');
  refuses(t, [0x81, 0xa9, ...new TextEncoder().encode('__proto__'), 0x01], 'ERR_WIRE_VALUE');
  refuses(t, [0x82, 0xa1, 0x61, 0x01, 0xa1, 0x61, 0x02], 'ERR_WIRE_VALUE');
});

test('checkMessagePack() refuses text that is not UTF-8', (t) => {
  refuses(t, [0xa1, 0xff], 'ERR_WIRE_TEXT');
});

test('checkMessagePack() refuses bytes after the value', (t) => {
  refuses(t, [0xc0, 0xc0], 'ERR_WIRE_TRAILING');
});
