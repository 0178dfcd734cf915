import test, { type ExecutionContext } from 'ava';
import { Cursor, WireError } from '../../../protocols/bytes/mod.ts';
import * as virtio from '../../../protocols/virtio/mod.ts';
import { refusesEveryTruncation, roundTrips, survivesEveryByteChange } from '../../macros/codec.ts';

/** All three properties of a codec, on one value. */
function codec<T>(
  t: ExecutionContext,
  value: T,
  encode: (value: T) => Uint8Array,
  decode: (bytes: Uint8Array) => T,
): void {
  roundTrips(t, value, encode, decode);
  refusesEveryTruncation(t, encode(value), decode);
  survivesEveryByteChange(t, encode(value), decode);
}

test('virtq_desc', (t) => {
  const value = { address: 0x8123_4567_89ab_cdefn, length: 0xffff_fff0, flags: 3, next: 0x1234 };
  codec(t, value, virtio.encodeVirtqDescriptor, virtio.decodeVirtqDescriptor);
  t.deepEqual(
    [...virtio.encodeVirtqDescriptor(value)],
    [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x81, 0xf0, 0xff, 0xff, 0xff, 3, 0, 0x34, 0x12],
  );
});

test('virtq_used_elem', (t) => {
  codec(t, { id: 7, length: 4097 }, virtio.encodeVirtqUsedElement, virtio.decodeVirtqUsedElement);
});

test('virtio_pci_cap, short and long, and a length that is neither', (t) => {
  const short = { next: 0x50, type: 1, bar: 4, id: 0, offset: 0x1000, length: 0x1000, tail: undefined };
  const long = { ...short, type: 2, tail: 4 };
  codec(t, short, virtio.encodeVirtioPciCapability, virtio.decodeVirtioPciCapability);
  codec(t, long, virtio.encodeVirtioPciCapability, virtio.decodeVirtioPciCapability);
  const bytes = virtio.encodeVirtioPciCapability(short);
  bytes[2] = 17;
  t.throws(() => virtio.decodeVirtioPciCapability(bytes), { code: 'ERR_WIRE_VALUE' });
});

test('virtio_blk_req and virtio_blk_config', (t) => {
  codec(
    t,
    { type: 1, priority: 0, sector: (1n << 64n) - 1n },
    virtio.encodeVirtioBlkRequest,
    virtio.decodeVirtioBlkRequest,
  );
  const config = {
    capacity: 1n << 40n,
    sizeMax: 4096,
    segMax: 254,
    blkSize: 4096,
    physicalBlockExp: 3,
    minIoSize: 8,
    optIoSize: 64,
    maxDiscardSectors: 1024,
    maxDiscardSeg: 16,
    discardSectorAlignment: 8,
    maxWriteZeroesSectors: 2048,
    maxWriteZeroesSeg: 4,
    writeZeroesMayUnmap: 1,
  };
  codec(t, config, virtio.encodeVirtioBlkConfig, virtio.decodeVirtioBlkConfig);
  t.is(virtio.encodeVirtioBlkConfig(config).length, 60);
});

test('virtio_blk_discard_write_zeroes: whole segments, one to the limit', (t) => {
  const segments = [
    { sector: 8n, sectors: 16, flags: 1 },
    { sector: 1n << 60n, sectors: 0xffff_ffff, flags: 0 },
  ];
  const bytes = virtio.encodeVirtioBlkSegments(segments);
  t.deepEqual(virtio.decodeVirtioBlkSegments(bytes, 2), segments);
  for (let length = 0; length < bytes.length; length++) {
    if (length === 16) continue; // one whole segment is a message too
    t.throws(() => virtio.decodeVirtioBlkSegments(bytes.slice(0, length), 2), { instanceOf: WireError });
  }
  t.throws(() => virtio.decodeVirtioBlkSegments(bytes, 1), { code: 'ERR_WIRE_LIMIT' });
});

test('virtio_net_hdr and virtio_net_config', (t) => {
  const header = {
    flags: 1,
    gsoType: 3,
    headerLength: 54,
    gsoSize: 1448,
    checksumStart: 34,
    checksumOffset: 16,
    buffers: 1,
  };
  codec(t, header, virtio.encodeVirtioNetHeader, virtio.decodeVirtioNetHeader);
  const config = { mac: Uint8Array.of(0x52, 0x54, 0, 1, 2, 3), status: 1, mtu: 1500 };
  codec(t, config, virtio.encodeVirtioNetConfig, virtio.decodeVirtioNetConfig);
  t.throws(() => virtio.encodeVirtioNetConfig({ ...config, mac: new Uint8Array(5) }), { instanceOf: RangeError });
});

test('virtio_console_config', (t) => {
  const config = { cols: 80, rows: 25, maxPorts: 1 };
  codec(t, config, virtio.encodeVirtioConsoleConfig, virtio.decodeVirtioConsoleConfig);
});

test('virtio_input_event keeps the sign, and bitmaps are as short as they can be', (t) => {
  codec(t, { type: 2, code: 8, value: -1 }, virtio.encodeVirtioInputEvent, virtio.decodeVirtioInputEvent);
  t.deepEqual([...virtio.encodeEvdevBits([])], []);
  t.deepEqual([...virtio.encodeEvdevBits([0, 9])], [1, 2]);
  t.is(virtio.encodeEvdevBits([1023]).length, 128);
  t.throws(() => virtio.encodeEvdevBits([1024]), { instanceOf: RangeError });
});

test('virtio_balloon pages and statistics: whole entries, never more than the limit', (t) => {
  const stats = [
    { tag: 0, value: 1n },
    { tag: 4, value: 1n << 63n },
  ];
  const bytes = virtio.encodeVirtioBalloonStats(stats);
  t.deepEqual(virtio.decodeVirtioBalloonStats(bytes), stats);
  t.throws(() => virtio.decodeVirtioBalloonStats(bytes.slice(0, 19)), { code: 'ERR_WIRE_TRUNCATED' });
  t.throws(() => virtio.decodeVirtioBalloonStats(new Uint8Array(650)), { code: 'ERR_WIRE_LIMIT' });
  t.deepEqual(virtio.decodeVirtioBalloonPages(Uint8Array.of(1, 0, 8, 0), 1), [0x8_0001]);
  t.throws(() => virtio.decodeVirtioBalloonPages(new Uint8Array(3), 1), { code: 'ERR_WIRE_TRUNCATED' });
  t.throws(() => virtio.decodeVirtioBalloonPages(new Uint8Array(8), 1), { code: 'ERR_WIRE_LIMIT' });
});

test('virtio_gpu_ctrl_hdr: each command refuses every truncation', (t) => {
  const decode = (bytes: Uint8Array): unknown => {
    const cursor = new Cursor(bytes, 'virtio_gpu command');
    return virtio.decodeGpuCommand(virtio.decodeGpuHeader(cursor), cursor);
  };
  const bodies = new Map<number, number>([
    [virtio.GPU_COMMAND.getDisplayInfo, 0],
    [virtio.GPU_COMMAND.getEdid, 4],
    [virtio.GPU_COMMAND.resourceCreate2d, 16],
    [virtio.GPU_COMMAND.resourceUnref, 4],
    [virtio.GPU_COMMAND.setScanout, 24],
    [virtio.GPU_COMMAND.resourceFlush, 20],
    [virtio.GPU_COMMAND.transferToHost2d, 28],
    [virtio.GPU_COMMAND.resourceAttachBacking, 8],
    [virtio.GPU_COMMAND.resourceDetachBacking, 4],
    [virtio.GPU_COMMAND.updateCursor, 28],
  ]);
  for (const [type, size] of bodies) {
    const bytes = new Uint8Array(24 + size);
    new DataView(bytes.buffer).setUint32(0, type, true);
    t.notThrows(() => decode(bytes));
    refusesEveryTruncation(t, bytes, decode);
    survivesEveryByteChange(t, bytes, decode);
  }
});

test('virtio_gpu attach-backing refuses more pieces than the limit before it reads one', (t) => {
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, virtio.GPU_COMMAND.resourceAttachBacking, true);
  view.setUint32(28, 0xffff_ffff, true);
  const cursor = new Cursor(bytes, 'virtio_gpu command');
  const header = virtio.decodeGpuHeader(cursor);
  t.throws(() => virtio.decodeGpuCommand(header, cursor), { code: 'ERR_WIRE_LIMIT' });
});

test('passesEvent() is the rule of §2.7.10, also where indices wrap', (t) => {
  t.true(virtio.passesEvent(0, 1, 0));
  t.false(virtio.passesEvent(0, 2, 1));
  t.true(virtio.passesEvent(5, 8, 3));
  t.false(virtio.passesEvent(8, 8, 3));
  t.true(virtio.passesEvent(0xffff, 0, 0xfffe));
  t.false(virtio.passesEvent(0, 0, 0xfffe));
});

test('isVirtqueueSize() takes powers of two up to 32768', (t) => {
  for (const size of [1, 2, 256, 32768]) t.true(virtio.isVirtqueueSize(size));
  for (const size of [0, 3, -2, 65536, 1.5, Number.NaN]) t.false(virtio.isVirtqueueSize(size));
});
