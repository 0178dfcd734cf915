import test from 'ava';
import fc from 'fast-check';
import { BGRX, encodeRaw, PixelPacker, ZrleTileEncoder, zrlePayload } from '../../../protocols/rfb/mod.ts';
import { decodeZrleTiles } from '../../fixtures/rfb_client.ts';

const packer = new PixelPacker({ ...BGRX, redShift: 0, blueShift: 16 });
const encoder = new ZrleTileEncoder();

interface Sample {
  width: number;
  height: number;
  pixels: Uint32Array;
}

function sample(width: number, height: number, colour: (x: number, y: number) => number): Sample {
  const pixels = new Uint32Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) pixels[y * width + x] = (colour(x, y) & 0xffffff) | 0x5a000000;
  }
  return { width, height, pixels };
}

function decoded(picture: Sample, area = { x: 0, y: 0, width: picture.width, height: picture.height }): Sample {
  const tiles = encoder.encode(picture, area, packer);
  const out = { ...picture, pixels: new Uint32Array(picture.width * picture.height) };
  decodeZrleTiles(tiles, area.x, area.y, area.width, area.height, (x, y, colour) => {
    out.pixels[y * picture.width + x] = colour | 0x5a000000;
  });
  return out;
}

const form = (picture: Sample) =>
  encoder.encode(picture, { x: 0, y: 0, width: picture.width, height: picture.height }, packer)[0];

test('ZRLE picks the form of a tile: solid, packed, palette runs, plain runs, raw', (t) => {
  t.is(form(sample(64, 64, () => 0x123456)), 1);
  t.is(form(sample(64, 64, (x, y) => (x ^ y) & 1)), 2);
  t.is(form(sample(64, 64, (x, y) => (x * 7 + y) % 16)), 16);
  t.is(form(sample(64, 64, (_x, y) => (y % 20) * 1000)), 128 + 20);
  t.is(form(sample(64, 64, (x, y) => (y * 2 + (x >> 5)) * 1001)), 128);
  t.is(form(sample(64, 64, (x, y) => (x * 64 + y) * 4001)), 0);
});

for (const colours of [1, 2, 3, 4, 5, 15, 16, 17, 126, 127, 128, 129, 4096]) {
  test(`ZRLE decodes to the same pixels with ${colours} colours a tile, in any size`, (t) => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 140 }),
        fc.integer({ min: 1, max: 140 }),
        fc.nat(),
        (width, height, seed) => {
          const picture = sample(width, height, (x, y) => {
            const spread = (seed & 1) === 0 ? x * 31 + y * 17 : (x >> 3) + y * 5;
            return Math.imul((spread + seed) % colours, 0x9e3779b1) >>> 8;
          });
          t.deepEqual(decoded(picture).pixels, picture.pixels);
        },
      ),
      { numRuns: 12 },
    );
  });
}

test('ZRLE of an area leaves the rest of the picture alone', (t) => {
  const picture = sample(200, 150, (x, y) => x * 1000 + y);
  const area = { x: 64, y: 64, width: 130, height: 70 };
  const out = decoded(picture, area);
  for (let y = 0; y < 150; y++) {
    for (let x = 0; x < 200; x++) {
      const inside = x >= 64 && x < 194 && y >= 64 && y < 134;
      if (out.pixels[y * 200 + x] !== (inside ? picture.pixels[y * 200 + x] : 0)) t.fail(`pixel ${x},${y}`);
    }
  }
  t.pass();
});

test('ZRLE runs of 1, 255, 256, 257 and 4096 pixels', (t) => {
  for (const run of [1, 2, 254, 255, 256, 257, 510, 511, 4095]) {
    const picture = sample(64, 64, (x, y) => (y * 64 + x < run ? 0xff0000 : 0x0000ff + y * 64 + x));
    t.deepEqual(decoded(picture).pixels, picture.pixels, `run of ${run}`);
  }
});

test('zrlePayload() puts the zlib header in front of the first segment only', (t) => {
  const segment = Uint8Array.of(1, 2, 3);
  t.is(Buffer.from(zrlePayload(segment, true)).toString('hex'), '000000057801010203');
  t.is(Buffer.from(zrlePayload(segment, false)).toString('hex'), '00000003010203');
});

test('encodeRaw() writes the rows of an area', (t) => {
  const picture = sample(4, 3, (x, y) => x * 16 + y);
  const bytes = encodeRaw(picture, { x: 1, y: 1, width: 2, height: 2 }, new PixelPacker(BGRX));
  t.is(Buffer.from(bytes).toString('hex'), '11000000210000001200000022000000');
});
