import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  coveringGeometry,
  decodeVhdDynamicHeader,
  decodeVhdFooter,
  diskBytes,
  encodeVhdDynamicHeader,
  encodeVhdFooter,
  geometryOf,
  geometrySectors,
  looksLikeVhdFooter,
  MAX_GEOMETRY,
  VHD_LIMITS,
  type VhdFooter,
} from '../../../protocols/vhd/mod.ts';
import { refusesEveryTruncation, roundTrips, survivesEveryByteChange } from '../../macros/codec.ts';

const footer: VhdFooter = {
  headerOffset: 512,
  timeSeconds: 1_700_000_000,
  creator: 'qem2',
  originalBytes: 10 << 20,
  currentBytes: 20 << 20,
  geometry: { cylinders: 602, heads: 4, sectorsPerTrack: 17 },
  type: 'dynamic',
  uuid: Uint8Array.from({ length: 16 }, (_, index) => index),
  savedState: false,
};
const header = { tableOffset: 1536, tableEntries: 10, blockBytes: 2 << 20, parentName: undefined };

/** The sum of all bytes again, so that what else is wrong is seen. */
function rechecked(bytes: Uint8Array, at: number): Uint8Array {
  const copy = bytes.slice();
  const view = new DataView(copy.buffer);
  if (copy.length < at + 4) return copy;
  view.setUint32(at, 0);
  view.setUint32(at, ~copy.reduce((sum, byte) => sum + byte, 0) >>> 0);
  return copy;
}

test('the footer keeps its fields, and every truncation is refused', (t) => {
  roundTrips(t, footer, encodeVhdFooter, decodeVhdFooter);
  roundTrips(t, { ...footer, type: 'fixed', headerOffset: undefined }, encodeVhdFooter, decodeVhdFooter);
  refusesEveryTruncation(t, encodeVhdFooter(footer), decodeVhdFooter);
  t.true(looksLikeVhdFooter(encodeVhdFooter(footer)));
  t.false(looksLikeVhdFooter(new Uint8Array(512)));
});

test('the footer survives every byte change, also under a checksum that is right again', (t) => {
  survivesEveryByteChange(t, encodeVhdFooter(footer), decodeVhdFooter);
  survivesEveryByteChange(t, encodeVhdFooter(footer), (bytes) => decodeVhdFooter(rechecked(bytes, 64)));
});

test('the dynamic header keeps its fields, every truncation is refused, every byte change survived', (t) => {
  roundTrips(t, header, encodeVhdDynamicHeader, decodeVhdDynamicHeader);
  refusesEveryTruncation(t, encodeVhdDynamicHeader(header), decodeVhdDynamicHeader);
  survivesEveryByteChange(t, encodeVhdDynamicHeader(header), (bytes) => decodeVhdDynamicHeader(rechecked(bytes, 36)));
});

test('decodeVhdFooter() refuses a checksum that is wrong', (t) => {
  const bytes = encodeVhdFooter(footer);
  bytes[100] = 1;
  t.throws(() => decodeVhdFooter(bytes), { instanceOf: WireError, code: 'ERR_WIRE_CHECKSUM', message: /checksum 0x/ });
});

test('decodeVhdDynamicHeader() shows the name of the parent, and opens nothing with it', (t) => {
  const bytes = encodeVhdDynamicHeader(header);
  const view = new DataView(bytes.buffer);
  for (const [index, unit] of [...'/etc/pässwd'].entries()) view.setUint16(64 + index * 2, unit.charCodeAt(0));
  t.is(decodeVhdDynamicHeader(rechecked(bytes, 36)).parentName, '/etc/pässwd');
  // A lone surrogate is no text.
  view.setUint16(64, 0xd800);
  t.is(decodeVhdDynamicHeader(rechecked(bytes, 36)).parentName, undefined);
});

for (const [sectors, cylinders, heads, sectorsPerTrack] of [
  // As QEMU 7.2 writes them for these sizes
  [20_480, 301, 4, 17],
  [20_536, 302, 4, 17],
  [2_097_152, 2080, 16, 63],
  [65_535 * 16 * 63, 16_191, 16, 255],
  [2 ** 32, 65_535, 16, 255],
] as const) {
  test(`geometryOf() of ${sectors} sectors is QEMU's`, (t) => {
    t.deepEqual(geometryOf(sectors), { cylinders, heads, sectorsPerTrack });
  });
}

test('coveringGeometry() never has fewer sectors than asked for, but for what no geometry has', (t) => {
  for (let sectors = 1; sectors < 300_000_000; sectors = Math.floor(sectors * 1.37) + 1) {
    const geometry = coveringGeometry(sectors);
    const more = geometrySectors(geometry) - sectors;
    t.true(more >= 0 || geometrySectors(geometry) === geometrySectors(MAX_GEOMETRY), `${sectors}`);
    t.true(more <= 16 * 255, `${sectors}: ${more} more`);
  }
});

test('diskBytes() takes the size from where its creator put it', (t) => {
  const geometry = { cylinders: 302, heads: 4, sectorsPerTrack: 17 };
  for (const creator of ['vpc ', 'qemu', '????']) t.is(diskBytes(geometry, 10 << 20, creator), 302 * 4 * 17 * 512);
  for (const creator of ['win ', 'qem2', 'd2v ', 'tap\0', 'CTXS', 'wa\0\0'])
    t.is(diskBytes(geometry, 10 << 20, creator), 10 << 20);
  t.is(diskBytes(MAX_GEOMETRY, 10 << 20, 'vpc '), 10 << 20);
  t.true(diskBytes(MAX_GEOMETRY, Number.MAX_SAFE_INTEGER, 'win ') <= VHD_LIMITS.sizeBytes);
});
