import { WireError } from '../protocols/bytes/mod.ts';
import * as nbd from '../protocols/nbd/mod.ts';

/** One decoder, or one state machine with its decoders, that takes foreign bytes. */
export interface FuzzTarget {
  readonly name: string;
  /** Valid inputs, to be changed */
  seeds(): Uint8Array[];
  /** @throws WireError for what is wrong; anything else is a find */
  run(input: Uint8Array): void;
}

const join = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((part) => [...part]));

const info = nbd.encodeInfoRequest({ name: 'disk', requests: [1, 3] });
const meta = nbd.encodeMetaContextRequest({ exportName: 'disk', queries: ['base:allocation', 'qemu:'] });
const clientFlags = nbd.encodeClientFlags(3);
const serverOptions = [
  nbd.encodeOption(nbd.OPT.STRUCTURED_REPLY),
  nbd.encodeOption(nbd.OPT.EXTENDED_HEADERS),
  nbd.encodeOption(nbd.OPT.LIST),
  nbd.encodeOption(nbd.OPT.STARTTLS),
  nbd.encodeOption(nbd.OPT.SET_META_CONTEXT, meta),
  nbd.encodeOption(nbd.OPT.LIST_META_CONTEXT, meta),
  nbd.encodeOption(nbd.OPT.INFO, info),
  nbd.encodeOption(nbd.OPT.GO, info),
  nbd.encodeOption(nbd.OPT.EXPORT_NAME, new TextEncoder().encode('disk')),
  nbd.encodeOption(nbd.OPT.ABORT),
];

const description: nbd.ExportDescription = {
  name: 'disk',
  sizeBytes: 1n << 20n,
  flags: 0xfff,
  blockSizes: { minimum: 1, preferred: 4096, maximum: 1 << 25 },
  contexts: [nbd.BASE_ALLOCATION, nbd.QEMU_ALLOCATION_DEPTH, `${nbd.QEMU_DIRTY_BITMAP}b`],
};

/** Frames out of a plain buffer: what the services do with a FrameDecoder. */
function* frames(input: Uint8Array, sizeOf: (head: Uint8Array) => { need?: number; bytes?: number }, limit: number) {
  for (let at = 0; at < input.length; ) {
    const { bytes } = sizeOf(input.subarray(at));
    if (bytes === undefined || at + bytes > input.length) return;
    if (bytes > limit) throw new WireError('ERR_WIRE_LIMIT', 'Cannot take a frame: too long');
    yield input.subarray(at, at + bytes);
    at += bytes;
  }
}

/** The server's handshake, client flags and any options, with a directory that knows one export. */
const serverHandshake: FuzzTarget = {
  name: 'nbd-server-handshake',
  seeds: () => [
    join(clientFlags, ...serverOptions),
    ...serverOptions.map((option) => join(clientFlags, serverOptions[0]!, option)),
    ...serverOptions.map((option) => join(clientFlags, serverOptions[1]!, option)),
  ],
  run(input) {
    if (input.length < 4) return;
    const tls = (['off', 'allow', 'require'] as const)[input[0]! % 3]!;
    let { state } = nbd.startServerNegotiation(tls);
    const flags = nbd.decodeClientFlags(input.subarray(0, 4));
    const take = (event: nbd.ServerNegotiationEvent): boolean => {
      const step = nbd.stepServerNegotiation(state, event);
      state = step.state;
      const { effect } = step;
      if (effect?.kind === 'describe') {
        return take({ kind: 'described', export: effect.name === 'disk' ? description : undefined });
      }
      if (effect?.kind === 'list') return take({ kind: 'listed', exports: [{ name: 'disk' }] });
      if (effect?.kind === 'starttls') return take({ kind: 'secured' });
      return effect === undefined;
    };
    if (!take({ kind: 'client-flags', flags })) return;
    const limit = nbd.OPTION_HEADER_BYTES + nbd.MAX_SKIPPED_OPTION_BYTES;
    for (const frame of frames(input.subarray(4), nbd.optionFrameSize, limit)) {
      if (!take({ kind: 'option', option: nbd.decodeOption(frame) })) return;
    }
  },
};

const header = { flags: 0, cookie: 7n, offset: 4096n };
const requests = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((type) => ({ ...header, type, length: type === 1 ? 8 : 512 }));
const eight = new Uint8Array(8).fill(5);

function requestTarget(extended: boolean): FuzzTarget {
  const encode = (request: (typeof requests)[number]): Uint8Array => {
    if (!extended) return join(nbd.encodeRequest(request), request.type === 1 ? eight : new Uint8Array(0));
    const flags = request.type === nbd.CMD.WRITE ? nbd.CMD_FLAG.PAYLOAD_LEN : 0;
    const bytes = nbd.encodeExtendedRequest({ ...request, flags, length: BigInt(request.length) });
    return join(bytes, request.type === 1 ? eight : new Uint8Array(0));
  };
  const filter = nbd.encodeBlockStatusFilter({ lengthBytes: 4096, contextIds: [1, 3] });
  const filtered = nbd.encodeExtendedRequest({
    ...header,
    type: nbd.CMD.BLOCK_STATUS,
    flags: nbd.CMD_FLAG.PAYLOAD_LEN,
    length: BigInt(filter.length),
  });
  return {
    name: extended ? 'nbd-extended-requests' : 'nbd-requests',
    seeds: () => [join(...requests.map(encode)), ...requests.map(encode), join(filtered, filter)],
    run(input) {
      const terms: nbd.TransmissionTerms = {
        sizeBytes: 1n << 20n,
        flags: 0x1fff,
        blockSizes: description.blockSizes,
        structured: true,
        extended,
        contexts: 3,
        maxPayloadBytes: nbd.MAX_PAYLOAD_BYTES,
      };
      const decoder = new nbd.RequestDecoder(terms);
      const middle = input.length >> 1;
      decoder.push(input.subarray(0, middle));
      for (let taken = decoder.next(); taken !== undefined; taken = decoder.next()) check(taken);
      decoder.keep();
      decoder.push(input.subarray(middle));
      for (let taken = decoder.next(); taken !== undefined; taken = decoder.next()) check(taken);
    },
  };
}

/** What reaches an image is inside of it. */
function check({ verdict, payload }: nbd.ReceivedRequest): void {
  if (!verdict.accepted) return;
  const { type, offset, length } = verdict.request;
  const inside = type === nbd.CMD.RESIZE || (offset >= 0 && length >= 0 && offset + length <= 1 << 20);
  if (!inside || (type === nbd.CMD.WRITE && payload.length !== length)) {
    throw new Error(`accepted ${type} of ${length} bytes at ${offset} with ${payload.length} bytes`);
  }
}

const ack = (option: number): Uint8Array => nbd.encodeOptionReply(option, nbd.REP.ACK);
const exportInfo = nbd.encodeInformation({ type: nbd.INFO.EXPORT, sizeBytes: 1n << 20n, flags: 0xfff });
const sizes = nbd.encodeInformation({ type: nbd.INFO.BLOCK_SIZE, blockSizes: description.blockSizes });
const context = nbd.encodeMetaContext({ id: 4, name: nbd.BASE_ALLOCATION });
const served = nbd.encodeListedExport({ name: 'disk', description: 'root' });

const clientHandshake: FuzzTarget = {
  name: 'nbd-client-handshake',
  seeds() {
    const greeting = nbd.encodeGreeting({ flags: 3 });
    const go = [
      nbd.encodeOptionReply(nbd.OPT.GO, nbd.REP.INFO, exportInfo),
      nbd.encodeOptionReply(nbd.OPT.GO, nbd.REP.INFO, sizes),
      ack(nbd.OPT.GO),
    ];
    const selected = [
      nbd.encodeOptionReply(nbd.OPT.SET_META_CONTEXT, nbd.REP.META_CONTEXT, context),
      ack(nbd.OPT.SET_META_CONTEXT),
    ];
    const refused = nbd.encodeOptionReply(nbd.OPT.EXTENDED_HEADERS, nbd.REP.ERR_UNSUP);
    const list = [nbd.encodeOptionReply(nbd.OPT.LIST, nbd.REP.SERVER, served), ack(nbd.OPT.LIST)];
    return [
      join(Uint8Array.of(0), greeting, ack(nbd.OPT.EXTENDED_HEADERS), ...selected, ...go),
      join(Uint8Array.of(0), greeting, refused, ack(nbd.OPT.STRUCTURED_REPLY), ...selected, ...go),
      join(Uint8Array.of(1), greeting, ...list),
      join(Uint8Array.of(2), greeting, ack(nbd.OPT.STARTTLS), ack(nbd.OPT.EXTENDED_HEADERS), ...selected, ...go),
      join(
        Uint8Array.of(0),
        nbd.encodeGreeting({ flags: 0 }),
        nbd.encodeExportNameReply({ sizeBytes: 4n, flags: 1 }, false),
      ),
    ];
  },
  run(input) {
    if (input.length < 1 + nbd.GREETING_BYTES) return;
    let state = nbd.startClientNegotiation({
      exportName: 'disk',
      contexts: [nbd.BASE_ALLOCATION],
      list: input[0] === 1,
      tls: input[0] === 2 ? 'require' : 'off',
    });
    const take = (event: nbd.ClientNegotiationEvent): boolean => {
      const step = nbd.stepClientNegotiation(state, event);
      state = step.state;
      if (step.effect?.kind === 'starttls') return take({ kind: 'secured' });
      return step.effect === undefined;
    };
    const rest = input.subarray(1 + nbd.GREETING_BYTES);
    if (!take({ kind: 'greeting', bytes: input.subarray(1, 1 + nbd.GREETING_BYTES) })) return;
    if (state.phase === 'export-name') {
      take({ kind: 'export-name-reply', reply: nbd.decodeExportNameReply(rest, state.noZeroes) });
      return;
    }
    const limit = nbd.OPTION_REPLY_HEADER_BYTES + nbd.MAX_OPTION_REPLY_BYTES;
    for (const frame of frames(rest, nbd.optionReplyFrameSize, limit)) {
      if ((state as nbd.ClientNegotiation).phase === 'export-name') return;
      if (!take({ kind: 'reply', reply: nbd.decodeOptionReply(frame) })) return;
    }
  },
};

function replyTarget(form: 'simple' | 'structured' | 'extended'): FuzzTarget {
  const chunk = (type: number, payload: Uint8Array, flags = 1): Uint8Array => {
    const fields = { flags, type, cookie: 1n, length: payload.length };
    if (form !== 'extended') return join(nbd.encodeChunkHeader(fields), payload);
    const bytes = new Uint8Array(nbd.EXTENDED_CHUNK_HEADER_BYTES);
    nbd.putExtendedChunkHeader(new DataView(bytes.buffer), 0, fields, 4096n);
    return join(bytes, payload);
  };
  const data = new Uint8Array(8 + 16).fill(9);
  new DataView(data.buffer).setBigUint64(0, 4096n);
  const status = { contextId: 1, extents: [{ lengthBytes: 512, flags: 1 }] };
  return {
    name: `nbd-${form}-replies`,
    seeds: () => [
      join(nbd.encodeSimpleReply({ error: 0, cookie: 1n }), new Uint8Array(64)),
      chunk(nbd.REPLY_TYPE.OFFSET_DATA, data, 0),
      join(chunk(nbd.REPLY_TYPE.OFFSET_DATA, data, 0), chunk(nbd.REPLY_TYPE.NONE, new Uint8Array(0))),
      chunk(nbd.REPLY_TYPE.OFFSET_HOLE, nbd.encodeHole({ offset: 4096n, lengthBytes: 64 })),
      chunk(nbd.REPLY_TYPE.ERROR, nbd.encodeReplyError({ error: 5, text: 'bad' })),
      chunk(nbd.REPLY_TYPE.ERROR_OFFSET, nbd.encodeReplyError({ error: 5, text: 'bad', offset: 4100n })),
      form === 'extended'
        ? chunk(nbd.REPLY_TYPE.BLOCK_STATUS_EXT, nbd.encodeExtendedBlockStatus(status))
        : chunk(nbd.REPLY_TYPE.BLOCK_STATUS, nbd.encodeBlockStatus(status)),
    ],
    run(input) {
      const assembler = new nbd.ReplyAssembler({
        structured: form !== 'simple',
        extended: form === 'extended',
        contextIds: [1],
      });
      const into = new Uint8Array(80).fill(0xaa);
      const type = (input.at(-1) ?? 0) % 2 === 0 ? nbd.CMD.READ : nbd.CMD.BLOCK_STATUS;
      assembler.expect({ cookie: 1, type, offset: 4096, length: 64, into: into.subarray(8, 72) });
      const middle = input.length >> 1;
      assembler.push(input.subarray(0, middle));
      assembler.push(input.subarray(middle));
      for (const index of [0, 7, 72, 79]) if (into[index] !== 0xaa) throw new Error(`wrote outside, at ${index}`);
    },
  };
}

const uris = ['nbd://h:1/x', 'nbds+unix://a@/x?socket=%2Fs&tls-psk-file=k', 'nbd+vsock://2:3/', 'nbd://[::1]/%20'];

/** Text of any kind as a URI; what is read is written and read again the same. */
const uri: FuzzTarget = {
  name: 'nbd-uri',
  seeds: () => uris.map((text) => new TextEncoder().encode(text)),
  run(input) {
    const parsed = nbd.parseNbdUri(new TextDecoder('latin1').decode(input));
    const again = nbd.parseNbdUri(nbd.formatNbdUri(parsed));
    if (again.exportName !== parsed.exportName) throw new Error(`another name: ${again.exportName}`);
  },
};

export const FUZZ_TARGETS: readonly FuzzTarget[] = [
  serverHandshake,
  requestTarget(false),
  requestTarget(true),
  clientHandshake,
  replyTarget('simple'),
  replyTarget('structured'),
  replyTarget('extended'),
  uri,
];
