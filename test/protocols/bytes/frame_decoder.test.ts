import test from 'ava';
import fc from 'fast-check';
import { FrameDecoder, WireError, Writer } from '../../../protocols/bytes/mod.ts';
import { sameForAnySplit } from '../../macros/codec.ts';

/** Frames of the test: u16 length of the payload, payload */
function decoder(maxFrameBytes = 64): FrameDecoder {
  return new FrameDecoder({
    name: 'test',
    maxFrameBytes,
    frameSize: (head) => (head.length < 2 ? { need: 2 } : { bytes: 2 + ((head[0]! << 8) | head[1]!) }),
  });
}

function framesOf(chunks: Uint8Array[]): number[][] {
  const frames: number[][] = [];
  const it = decoder();
  for (const chunk of chunks) {
    it.push(chunk);
    for (let frame = it.next(); frame !== undefined; frame = it.next()) frames.push([...frame]);
  }
  return frames;
}

test('FrameDecoder gives the same frames for any split', (t) => {
  const stream = new Writer()
    .u16(3)
    .bytes(Uint8Array.of(1, 2, 3))
    .u16(0)
    .u16(5)
    .bytes(Uint8Array.of(9, 8, 7, 6, 5))
    .finish();
  sameForAnySplit(t, stream.slice(), framesOf);
});

test('FrameDecoder gives the same frames for random streams and splits', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 20 }),
      fc.array(fc.integer({ min: 1, max: 9 })),
      (payloads, cuts) => {
        const writer = new Writer();
        for (const payload of payloads) writer.u16(payload.length).bytes(payload);
        const stream = writer.finish().slice();
        const chunks: Uint8Array[] = [];
        for (let at = 0, i = 0; at < stream.length; i++) {
          const size = cuts.length === 0 ? 1 : cuts[i % cuts.length]!;
          chunks.push(stream.slice(at, at + size));
          at += size;
        }
        t.deepEqual(
          framesOf(chunks),
          payloads.map((p) => [p.length >> 8, p.length & 255, ...p]),
        );
      },
    ),
  );
});

test('FrameDecoder refuses a declared length above the limit before its bytes come', (t) => {
  const it = decoder(16);
  it.push(Uint8Array.of(0xff, 0xff));
  t.throws(() => it.next(), { instanceOf: WireError, code: 'ERR_WIRE_LIMIT' });
});

test('FrameDecoder bounds what waits unread', (t) => {
  const it = decoder(16);
  t.throws(() => it.push(new Uint8Array(1000)), { code: 'ERR_WIRE_LIMIT' });
});
