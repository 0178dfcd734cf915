import test from 'ava';
import fc from 'fast-check';
import { WireError } from '../../../protocols/bytes/mod.ts';
import * as nbd from '../../../protocols/nbd/mod.ts';
import { refusesEveryTruncation, roundTrips, survivesEveryByteChange } from '../../macros/codec.ts';

const utf8 = (text: string): number[] => [...new TextEncoder().encode(text)];

interface Codec<T> {
  readonly name: string;
  readonly value: T;
  readonly encode: (value: T) => Uint8Array;
  readonly decode: (bytes: Uint8Array) => T;
  /** Some formats end in "the rest is text": a shorter one is another valid message */
  readonly openEnd?: boolean;
}

function codec<T>(it: Codec<T>): Codec<unknown> {
  return it as unknown as Codec<unknown>;
}

const request: nbd.Request = { flags: 1, type: 1, cookie: 0x1122334455667788n, offset: 4096n, length: 512 };

const codecs: Codec<unknown>[] = [
  codec({ name: 'greeting', value: { flags: 3 }, encode: nbd.encodeGreeting, decode: nbd.decodeGreeting }),
  codec({ name: 'client flags', value: 3, encode: nbd.encodeClientFlags, decode: nbd.decodeClientFlags }),
  codec<nbd.ExportNameReply>({
    name: 'NBD_OPT_EXPORT_NAME reply',
    value: { sizeBytes: 1n << 40n, flags: 0x1ff },
    encode: (value) => nbd.encodeExportNameReply(value, false),
    decode: (bytes) => nbd.decodeExportNameReply(bytes, false),
  }),
  codec<nbd.Option>({
    name: 'option',
    value: { option: 7, data: Uint8Array.of(1, 2, 3) },
    encode: (value) => nbd.encodeOption(value.option, value.data),
    decode: nbd.decodeOption,
  }),
  codec<nbd.OptionReply>({
    name: 'option reply',
    value: { option: 7, type: 3, data: Uint8Array.of(9, 8) },
    encode: (value) => nbd.encodeOptionReply(value.option, value.type, value.data),
    decode: nbd.decodeOptionReply,
  }),
  codec<nbd.InfoRequest>({
    name: 'NBD_OPT_INFO',
    value: { name: 'disk0', requests: [1, 3] },
    encode: nbd.encodeInfoRequest,
    decode: nbd.decodeInfoRequest,
  }),
  codec<nbd.MetaContextRequest>({
    name: 'NBD_OPT_SET_META_CONTEXT',
    value: { exportName: 'disk0', queries: ['base:allocation', 'qemu:'] },
    encode: nbd.encodeMetaContextRequest,
    decode: nbd.decodeMetaContextRequest,
  }),
  codec<nbd.Information>({
    name: 'NBD_INFO_EXPORT',
    value: { type: nbd.INFO.EXPORT, sizeBytes: 1n << 62n, flags: 0xfff },
    encode: (value) => nbd.encodeInformation(value as Exclude<nbd.Information, { type: 'unknown' }>),
    decode: nbd.decodeInformation,
  }),
  codec<nbd.Information>({
    name: 'NBD_INFO_BLOCK_SIZE',
    value: { type: nbd.INFO.BLOCK_SIZE, blockSizes: { minimum: 1, preferred: 4096, maximum: 1 << 25 } },
    encode: (value) => nbd.encodeInformation(value as Exclude<nbd.Information, { type: 'unknown' }>),
    decode: nbd.decodeInformation,
  }),
  codec<nbd.ExportSummary>({
    name: 'NBD_REP_SERVER',
    value: { name: 'disk0', description: 'root' },
    encode: nbd.encodeListedExport,
    decode: nbd.decodeListedExport,
    openEnd: true,
  }),
  codec<nbd.MetaContext>({
    name: 'NBD_REP_META_CONTEXT',
    value: { id: 1, name: 'base:allocation' },
    encode: nbd.encodeMetaContext,
    decode: nbd.decodeMetaContext,
    openEnd: true,
  }),
  codec({ name: 'request', value: request, encode: nbd.encodeRequest, decode: nbd.decodeRequest }),
  codec<nbd.SimpleReply>({
    name: 'simple reply',
    value: { error: 5, cookie: 77n },
    encode: nbd.encodeSimpleReply,
    decode: nbd.decodeSimpleReply,
  }),
  codec<nbd.ChunkHeader>({
    name: 'structured reply chunk',
    value: { flags: 1, type: 5, cookie: 99n, length: 12 },
    encode: nbd.encodeChunkHeader,
    decode: nbd.decodeChunkHeader,
  }),
  codec<nbd.Hole>({
    name: 'NBD_REPLY_TYPE_OFFSET_HOLE',
    value: { offset: 8192n, lengthBytes: 4096 },
    encode: nbd.encodeHole,
    decode: nbd.decodeHole,
  }),
  codec<nbd.ReplyError>({
    name: 'NBD_REPLY_TYPE_ERROR_OFFSET',
    value: { error: 5, text: 'bad sector', offset: 4096n },
    encode: nbd.encodeReplyError,
    decode: (bytes) => nbd.decodeReplyError(nbd.REPLY_TYPE.ERROR_OFFSET, bytes),
  }),
  codec<nbd.BlockStatus>({
    name: 'NBD_REPLY_TYPE_BLOCK_STATUS',
    value: { contextId: 1, extents: [{ lengthBytes: 4096, flags: 3 }] },
    encode: nbd.encodeBlockStatus,
    decode: nbd.decodeBlockStatus,
  }),
];

for (const { name, value, encode, decode, openEnd } of codecs) {
  test(`${name} survives a round trip`, (t) => {
    roundTrips(t, value, encode, decode);
  });
  if (!openEnd) {
    test(`${name} refuses every truncation`, (t) => {
      refusesEveryTruncation(t, encode(value), decode);
    });
  }
  test(`${name} survives every changed byte`, (t) => {
    survivesEveryByteChange(t, encode(value), decode);
  });
  test(`${name} refuses or reads random bytes, nothing else`, (t) => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        try {
          decode(bytes);
        } catch (error) {
          if (!(error instanceof WireError)) throw error;
        }
      }),
      { numRuns: 300 },
    );
    t.pass();
  });
}

test('encodeRequest() writes the bytes of the specification', (t) => {
  t.deepEqual(
    [...nbd.encodeRequest(request)],
    [
      ...[0x25, 0x60, 0x95, 0x13], // magic
      ...[0, 1], // flags: FUA
      ...[0, 1], // type: WRITE
      ...[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88], // cookie
      ...[0, 0, 0, 0, 0, 0, 0x10, 0], // offset
      ...[0, 0, 2, 0], // length
    ],
  );
});

test('encodeGreeting() writes NBDMAGIC and IHAVEOPT', (t) => {
  t.deepEqual([...nbd.encodeGreeting({ flags: 3 })], [...utf8('NBDMAGIC'), ...utf8('IHAVEOPT'), 0, 3]);
});

test('decodeGreeting() refuses an oldstyle server by name', (t) => {
  const bytes = Uint8Array.from([...utf8('NBDMAGIC'), 0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53, 0, 0]);
  t.throws(() => nbd.decodeGreeting(bytes), { instanceOf: WireError, message: /oldstyle/ });
});

test('CVE-2017-15118: names of 257 to 4096 bytes are read, 4097 is refused', (t) => {
  for (const length of [257, 4095, 4096]) {
    const name = 'x'.repeat(length);
    t.is(nbd.decodeInfoRequest(nbd.encodeInfoRequest({ name, requests: [] })).name, name);
  }
  const long = nbd.encodeInfoRequest({ name: 'x'.repeat(4097), requests: [] });
  t.throws(() => nbd.decodeInfoRequest(long), { instanceOf: WireError, code: 'ERR_WIRE_LIMIT' });
});

test('CVE-2022-26495, CVE-2022-26496: a name length of 2^32-1 or past the option is refused', (t) => {
  for (const length of [0xffff_ffff, 0x7fff_ffff, 20]) {
    const data = new Uint8Array(10);
    new DataView(data.buffer).setUint32(0, length);
    t.throws(() => nbd.decodeInfoRequest(data), { instanceOf: WireError });
  }
});

test('H5: information asked twice, too often, or with bytes behind is refused', (t) => {
  const twice = nbd.encodeInfoRequest({ name: '', requests: [1, 1] });
  t.throws(() => nbd.decodeInfoRequest(twice), { code: 'ERR_WIRE_VALUE' });
  const many = nbd.encodeInfoRequest({ name: '', requests: Array.from({ length: 33 }, (_, index) => index) });
  t.throws(() => nbd.decodeInfoRequest(many), { code: 'ERR_WIRE_LIMIT' });
  const announced = nbd.encodeInfoRequest({ name: '', requests: [] });
  announced[5] = 0xff;
  announced[4] = 0xff;
  t.throws(() => nbd.decodeInfoRequest(announced), { code: 'ERR_WIRE_VALUE' });
  const trailing = Uint8Array.from([...nbd.encodeInfoRequest({ name: 'a', requests: [] }), 0]);
  t.throws(() => nbd.decodeInfoRequest(trailing), { code: 'ERR_WIRE_VALUE' });
});

test('H13: 2^32-1 queries in few bytes are refused before anything is made of them', (t) => {
  const data = nbd.encodeMetaContextRequest({ exportName: '', queries: [] });
  data.fill(0xff, 4, 8);
  t.throws(() => nbd.decodeMetaContextRequest(data), { code: 'ERR_WIRE_VALUE' });
  const many = nbd.encodeMetaContextRequest({ exportName: '', queries: Array.from({ length: 33 }, () => '') });
  t.throws(() => nbd.decodeMetaContextRequest(many), { code: 'ERR_WIRE_LIMIT' });
});

test('T8, CVE-2020-10761: texts that we send are cut to 4096 bytes between characters', (t) => {
  t.is(nbd.boundedText('x'.repeat(9000)).length, 4096);
  const cut = nbd.boundedText(`${'x'.repeat(4095)}äöü`);
  t.is(cut.length, 4095);
  t.notThrows(() => new TextDecoder('utf-8', { fatal: true }).decode(cut));
});

test('CVE-2023-5871: block status without extents, or with one of 0 bytes, is refused', (t) => {
  t.throws(() => nbd.decodeBlockStatus(nbd.encodeBlockStatus({ contextId: 1, extents: [] })), {
    code: 'ERR_WIRE_VALUE',
  });
  const empty = nbd.encodeBlockStatus({ contextId: 1, extents: [{ lengthBytes: 0, flags: 0 }] });
  t.throws(() => nbd.decodeBlockStatus(empty), { code: 'ERR_WIRE_VALUE' });
});

test('T14, CVE-2025-47711, CVE-2025-47712: fitted extents stay inside the request for any input', (t) => {
  const extent = fc.record({
    lengthBytes: fc.oneof(fc.nat(20_000), fc.constantFrom(2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 40, 2 ** 53 - 1)),
    flags: fc.constantFrom(0, 2, 3),
  });
  fc.assert(
    fc.property(
      fc.array(extent, { maxLength: 20 }),
      fc.integer({ min: 1, max: 0xffff_ffff }),
      fc.integer({ min: 1, max: 8 }),
      fc.constantFrom(1, 512, 4096),
      (extents, lengthBytes, maxExtents, minimumBlockBytes) => {
        const fitted = nbd.fitExtents(extents, { lengthBytes, maxExtents, minimumBlockBytes });
        let total = 0;
        for (const [index, one] of fitted.entries()) {
          if (one.lengthBytes <= 0 || one.lengthBytes > 0xffff_ffff) throw new Error(`length ${one.lengthBytes}`);
          if (index > 0 && fitted[index - 1]!.flags === one.flags) throw new Error('neighbours are not merged');
          total += one.lengthBytes;
          if (index < fitted.length - 1 && total % minimumBlockBytes !== 0) throw new Error('not whole blocks');
        }
        if (total > lengthBytes) throw new Error(`${total} of ${lengthBytes}`);
        if (fitted.length > maxExtents) throw new Error('too many');
        const given = extents.reduce((sum, one) => sum + one.lengthBytes, 0);
        if (given > 0 && given >= minimumBlockBytes && fitted.length === 0) throw new Error('nothing is left');
      },
    ),
    { numRuns: 2000 },
  );
  t.pass();
});

test('T14: a block that is partly data is data', (t) => {
  const fitted = nbd.fitExtents(
    [
      { lengthBytes: 100, flags: 0 },
      { lengthBytes: 1948, flags: 3 },
    ],
    { lengthBytes: 2048, maxExtents: 10, minimumBlockBytes: 512 },
  );
  t.deepEqual(fitted, [
    { lengthBytes: 512, flags: 0 },
    { lengthBytes: 1536, flags: 3 },
  ]);
});
