import test from 'ava';
import {
  BGRX,
  Encoding,
  encodeColourMap,
  encodeCursor,
  encodeDesktopName,
  encodeExtendedDesktopSize,
  encodeLedState,
  encodeRectangleHeader,
  encodeServerFence,
  encodeServerInit,
  encodeUpdateHeader,
  fenceReplyFlags,
  PixelPacker,
} from '../../../protocols/rfb/mod.ts';

const hex = (bytes: Uint8Array | undefined) => Buffer.from(bytes!).toString('hex');
const packer = new PixelPacker(BGRX);

test('encodeServerInit() golden bytes', (t) => {
  t.is(
    hex(encodeServerInit(640, 480, BGRX, 'hé')),
    '028001e0' + '20180001' + '00ff00ff00ff' + '100800' + '000000' + '00000003' + '68c3a9',
  );
});

test('names above 1 KiB are cut at a character', (t) => {
  const name = 'é'.repeat(2000);
  const bytes = encodeDesktopName(name);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(12);
  t.true(length <= 1024 && length > 400);
  t.regex(Buffer.from(bytes.subarray(16)).toString('utf8'), /^é+$/);
});

test('update, rectangle, size, LED and fence golden bytes', (t) => {
  t.is(hex(encodeUpdateHeader(2)), '00000002');
  t.is(hex(encodeRectangleHeader({ x: 1, y: 2, width: 3, height: 4 }, 16)), '000100020003000400000010');
  t.is(
    hex(encodeExtendedDesktopSize(800, 600, [{ id: 0, x: 0, y: 0, width: 800, height: 600, flags: 0 }], 1, 3)),
    '000100030320025' + '8fffffecc' + '01000000' + '00000000' + '00000000' + '03200258' + '00000000',
  );
  t.is(hex(encodeLedState(0xfe)), '0000000000000000fffffefb06');
  t.is(hex(encodeServerFence(0x8000_0001, Uint8Array.of(9))), 'f8000000800000010109');
  t.throws(() => encodeServerFence(0, new Uint8Array(65)), { instanceOf: RangeError });
  t.is(fenceReplyFlags(0xffff_ffff), 7);
});

test('encodeColourMap() describes 256 entries, black to white', (t) => {
  const map = encodeColourMap();
  t.is(map.length, 6 + 256 * 6);
  t.is(hex(map.subarray(0, 12)), '010000000100' + '000000000000');
  t.is(hex(map.subarray(-6)), 'ffffffffffff');
});

const cursor = { width: 2, height: 1, hotX: 9, hotY: 9, pixels: Uint8Array.of(1, 2, 3, 255, 10, 20, 30, 128) };

test('encodeCursor() takes the best form that the client has', (t) => {
  const set = (...encodings: number[]) => new Set(encodings);
  t.is(encodeCursor(cursor, set(), packer), undefined);
  const alpha = hex(
    encodeCursor(cursor, set(Encoding.cursor, Encoding.vmwareCursor, Encoding.cursorWithAlpha), packer),
  );
  t.is(alpha, '0001000000020001' + 'fffffec6' + '00000000' + '030201ff' + '1e140a80', 'premultiplied, hot spot inside');
  const vmware = hex(encodeCursor(cursor, set(Encoding.cursor, Encoding.vmwareCursor), packer));
  t.is(vmware, '0001000000020001' + '574d5664' + '0100' + '030201ff' + '3c281480', 'not premultiplied');
  const masked = hex(encodeCursor(cursor, set(Encoding.cursor), packer));
  t.is(masked, '0001000000020001' + 'ffffff11' + '01020300' + '0a141e00' + 'c0');
});

test('encodeCursor() shows a hidden cursor as 0 x 0', (t) => {
  const hidden = { width: 0, height: 0, hotX: 0, hotY: 0, pixels: new Uint8Array(0) };
  t.is(hex(encodeCursor(hidden, new Set([Encoding.cursor]), packer)), '0000000000000000ffffff11');
});

test('encodeCursor() refuses a cursor of 65535 x 65535 as our own mistake', (t) => {
  const huge = { width: 65535, height: 65535, hotX: 0, hotY: 0, pixels: new Uint8Array(4) };
  t.throws(() => encodeCursor(huge, new Set([Encoding.cursor]), packer), { instanceOf: RangeError });
});
