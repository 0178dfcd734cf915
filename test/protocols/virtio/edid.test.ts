import test from 'ava';
import { EDID_BYTES, EDID_MAX_SIDE, encodeEdid } from '../../../protocols/virtio/mod.ts';

/** The first detailed timing (VESA E-EDID 1.4 §3.10.2) */
function timing(edid: Uint8Array) {
  const at = (index: number): number => edid[54 + index]!;
  return {
    clockHz: (at(0) | (at(1) << 8)) * 10_000,
    width: at(2) | ((at(4) & 0xf0) << 4),
    hBlank: at(3) | ((at(4) & 0x0f) << 8),
    height: at(5) | ((at(7) & 0xf0) << 4),
    vBlank: at(6) | ((at(7) & 0x0f) << 8),
    hSync: at(8) + at(9),
    vSync: (at(10) >> 4) + (at(10) & 15),
    widthMm: at(12) | ((at(14) & 0xf0) << 4),
    heightMm: at(13) | ((at(14) & 0x0f) << 8),
  };
}

const SIZES = [
  [1280, 800],
  [1024, 768],
  [1920, 1080],
  [3840, 2160],
  [64, 64],
  [1, 1],
  [EDID_MAX_SIDE, EDID_MAX_SIDE],
  [4088, 64],
] as const;

test('encodeEdid(): header, version and checksum', (t) => {
  for (const [width, height] of SIZES) {
    const edid = encodeEdid(width, height);
    t.is(edid.length, EDID_BYTES);
    t.deepEqual([...edid.subarray(0, 8)], [0, 255, 255, 255, 255, 255, 255, 0]);
    t.deepEqual([edid[18], edid[19], edid[126]], [1, 4, 0]);
    t.is(edid.reduce((sum, byte) => sum + byte, 0) & 0xff, 0, `${width}x${height}`);
  }
});

test('encodeEdid(): the preferred timing is the size asked for, with sync inside of the blanking', (t) => {
  for (const [width, height] of SIZES) {
    const found = timing(encodeEdid(width, height));
    t.deepEqual([found.width, found.height], [width, height]);
    t.true(found.hSync < found.hBlank && found.vSync < found.vBlank);
    t.is(found.widthMm, Math.round((width * 25.4) / 96));
    t.is(found.heightMm, Math.round((height * 25.4) / 96));
  }
});

test('encodeEdid(): 60 Hz where the pixel clock has room, less where it has not', (t) => {
  const rate = (width: number, height: number): number => {
    const found = timing(encodeEdid(width, height));
    return found.clockHz / ((width + found.hBlank) * (height + found.vBlank));
  };
  for (const [width, height] of [
    [1280, 800],
    [1920, 1080],
    [3840, 2160],
  ] as const) {
    t.true(Math.abs(rate(width, height) - 60) < 0.1, `${rate(width, height)}`);
  }
  t.true(rate(EDID_MAX_SIDE, EDID_MAX_SIDE) > 30);
  for (const [width, height] of SIZES) t.true(timing(encodeEdid(width, height)).clockHz >= 10_000_000);
});

test('encodeEdid() refuses sizes that a detailed timing cannot say', (t) => {
  for (const side of [0, -1, 4096, 65535, 1.5, Number.NaN]) {
    t.throws(() => encodeEdid(side, 100), { instanceOf: RangeError });
    t.throws(() => encodeEdid(100, side), { instanceOf: RangeError });
  }
});
