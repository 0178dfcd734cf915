import test from 'ava';
import fc from 'fast-check';
import { Cursor, WireError } from '../../../protocols/bytes/mod.ts';
import {
  BGR233,
  BGRX,
  decodePixelFormat,
  encodePixelFormat,
  type PixelFormat,
  PixelPacker,
  validatePixelFormat,
} from '../../../protocols/rfb/mod.ts';

const noVnc: PixelFormat = { ...BGRX, redShift: 0, blueShift: 16 };
const rgb565: PixelFormat = {
  ...BGRX,
  bitsPerPixel: 16,
  depth: 16,
  redMax: 31,
  greenMax: 63,
  blueMax: 31,
  redShift: 11,
  greenShift: 5,
  blueShift: 0,
};

test('encodePixelFormat() and back', (t) => {
  for (const format of [BGRX, BGR233, noVnc, rgb565, { ...BGRX, bigEndian: true }]) {
    const bytes = encodePixelFormat(format);
    t.is(bytes.length, 16);
    t.deepEqual(decodePixelFormat(new Cursor(bytes, 'test')), format);
    t.notThrows(() => validatePixelFormat(format));
  }
});

const WRONG: readonly (readonly [string, Partial<PixelFormat>])[] = [
  ['0 bits per pixel', { bitsPerPixel: 0 }],
  ['1 bit per pixel', { bitsPerPixel: 1 }],
  ['7 bits per pixel', { bitsPerPixel: 7 }],
  ['24 bits per pixel', { bitsPerPixel: 24 }],
  ['255 bits per pixel', { bitsPerPixel: 255 }],
  ['depth above bits per pixel', { depth: 33 }],
  ['depth 0', { depth: 0 }],
  ['max 0', { redMax: 0 }],
  ['max that is not 2^n - 1', { greenMax: 254 }],
  ['max beyond the pixel', { greenMax: 0xffff, greenShift: 24 }],
  ['shift 32', { redShift: 32 }],
  ['shift 255', { blueShift: 255 }],
  ['overlapping colours', { redShift: 8 }],
  ['a colour map at 32 bits', { trueColour: false }],
];
for (const [name, change] of WRONG) {
  test(`validatePixelFormat() refuses ${name}`, (t) => {
    const error = t.throws(() => validatePixelFormat({ ...BGRX, ...change }), { instanceOf: WireError });
    t.is(error?.code, 'ERR_WIRE_VALUE');
  });
}

test('validatePixelFormat() accepts or refuses any sixteen bytes, and what it accepts can be packed', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.nat(0xffffff), (bytes, colour) => {
      let packer: PixelPacker;
      try {
        packer = new PixelPacker(validatePixelFormat(decodePixelFormat(new Cursor(bytes, 'test'))));
      } catch (error) {
        return error instanceof WireError;
      }
      const out = new Uint8Array(8);
      return packer.writePixel(colour, out, 0) === packer.bytes && packer.writeCpixel(colour, out, 0) <= 4;
    }),
    { numRuns: 500 },
  );
  t.pass();
});

const pack = (format: PixelFormat, colour: number) => {
  const packer = new PixelPacker(format);
  const out = new Uint8Array(packer.bytes);
  packer.writePixel(colour, out, 0);
  return Buffer.from(out).toString('hex');
};

test('PixelPacker puts colours where the format says', (t) => {
  t.is(pack(BGRX, 0x123456), '56341200');
  t.is(pack(noVnc, 0x123456), '12345600');
  t.is(pack({ ...BGRX, bigEndian: true }, 0x123456), '00123456');
  t.is(pack({ ...BGRX, redShift: 24, greenShift: 16, blueShift: 8 }, 0x123456), '00563412');
  t.is(pack(rgb565, 0xffffff), 'ffff');
  t.is(pack(rgb565, 0xff0000), '00f8');
  t.is(pack({ ...rgb565, bigEndian: true }, 0xff0000), 'f800');
  t.is(pack(BGR233, 0xff00ff), 'c7');
  t.is(
    pack({ ...BGRX, depth: 30, redMax: 1023, greenMax: 1023, blueMax: 1023, redShift: 20, greenShift: 10 }, 0xffffff),
    'ffffff3f',
  );
});

test('a CPIXEL has three bytes only where the fourth says nothing', (t) => {
  const high = { ...BGRX, redShift: 24, greenShift: 16, blueShift: 8 };
  const out = new Uint8Array(4);
  t.is(new PixelPacker(BGRX).writeCpixel(0x123456, out, 0), 3);
  t.is(Buffer.from(out.subarray(0, 3)).toString('hex'), '563412');
  t.is(new PixelPacker(high).writeCpixel(0x123456, out, 0), 3);
  t.is(Buffer.from(out.subarray(0, 3)).toString('hex'), '563412');
  t.is(new PixelPacker({ ...high, bigEndian: true }).writeCpixel(0x123456, out, 0), 3);
  t.is(Buffer.from(out.subarray(0, 3)).toString('hex'), '123456');
  t.is(new PixelPacker({ ...BGRX, depth: 32 }).cpixelBytes, 4);
  t.is(new PixelPacker({ ...BGRX, redShift: 24 }).cpixelBytes, 4);
  t.is(new PixelPacker(rgb565).cpixelBytes, 2);
});
