import { WireError } from '../bytes/mod.ts';
import { CLIENT_FLAG, HANDSHAKE_FLAG, INFO, OPT, optionName, REP } from './constants.ts';
import type { BlockSizes, ExportSummary, MetaContext } from './export.ts';
import { decodeGreeting, type ExportNameReply, encodeClientFlags } from './greeting.ts';
import { MAX_EXPORT_BYTES, MAX_INFO_REPLIES, MAX_LISTED_EXPORTS, MAX_PAYLOAD_BYTES } from './limits.ts';
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption, type OptionReply } from './option.ts';
import { decodeInformation, decodeListedExport, decodeMetaContext } from './option_reply.ts';

// Fixed newstyle, the client's side, as a pure state machine. One option is outstanding at a time:
//
//   greeting ─► extended ─► structured ─► meta ─► go ─► transmission    fallbacks: no extended headers → structured
//       │           └──────────────────────▲  │      └─► export-name ─┘   replies; none of them → no meta; GO unknown
//       │                                     └─► list ─► listed          (ERR_UNSUP) → EXPORT_NAME; a server without
//       └─► export-name                                                   FIXED_NEWSTYLE → EXPORT_NAME at once
//
// With TLS wished for, starttls ─► tls ─► comes right behind the greeting, so that nothing is learned before it. Where
// TLS is required, a refusal of it ends the session (CVE-2019-14842: it must never go on in clear text).
//
// The server is untrusted: every count and length of its answers is bounded before it is kept.

export interface ClientWishes {
  /** Export to open; '' is the server's default */
  readonly exportName: string;
  /** Ask for structured replies (default true) */
  readonly structured?: boolean;
  /** Ask for extended headers before (default true; never without structured) */
  readonly extended?: boolean;
  /** Meta contexts to select, if structured replies come on */
  readonly contexts?: readonly string[];
  /** List the exports instead of opening one */
  readonly list?: boolean;
  /** `allow` goes on in clear text where the server has no TLS (default off) */
  readonly tls?: 'off' | 'allow' | 'require';
}

/** What the handshake ended with. */
export interface AgreedExport {
  readonly name: string;
  readonly description: string | undefined;
  readonly sizeBytes: bigint;
  /** Bits of TRANSMISSION_FLAG, as the server sent them */
  readonly flags: number;
  readonly blockSizes: BlockSizes;
  readonly structured: boolean;
  /** Headers have lengths of 64 bits; includes `structured` */
  readonly extended: boolean;
  readonly contexts: readonly MetaContext[];
}

export interface ClientNegotiation {
  readonly phase:
    | 'greeting'
    | 'starttls'
    | 'tls'
    | 'extended'
    | 'structured'
    | 'meta'
    | 'go'
    | 'export-name'
    | 'list'
    | 'transmission'
    | 'listed'
    | 'failed';
  readonly wishes: ClientWishes;
  readonly noZeroes: boolean;
  readonly structured: boolean;
  readonly extended: boolean;
  readonly contexts: readonly MetaContext[];
  readonly listed: readonly ExportSummary[];
  readonly infoReplies: number;
  readonly size: ExportNameReply | undefined;
  readonly name: string | undefined;
  readonly description: string | undefined;
  readonly blockSizes: BlockSizes | undefined;
}

export type ClientNegotiationEvent =
  | { readonly kind: 'greeting'; readonly bytes: Uint8Array }
  | { readonly kind: 'reply'; readonly reply: OptionReply }
  /** Answer to the effect `starttls` */
  | { readonly kind: 'secured' }
  | { readonly kind: 'export-name-reply'; readonly reply: ExportNameReply };

export type ClientNegotiationEffect =
  /** Start the client's end of TLS. Plain text that is there already is an attack: the session must end instead */
  | { readonly kind: 'starttls' }
  | { readonly kind: 'transmit'; readonly export: AgreedExport }
  | { readonly kind: 'listed'; readonly exports: readonly ExportSummary[] };

export interface ClientNegotiationStep {
  readonly state: ClientNegotiation;
  readonly out: readonly Uint8Array[];
  readonly effect: ClientNegotiationEffect | undefined;
}

/** What a server that says nothing of block sizes has ("Block size constraints") */
const DEFAULT_BLOCK_SIZES: BlockSizes = { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD_BYTES };

export function startClientNegotiation(wishes: ClientWishes): ClientNegotiation {
  return {
    phase: 'greeting',
    wishes,
    noZeroes: false,
    structured: false,
    extended: false,
    contexts: [],
    listed: [],
    infoReplies: 0,
    size: undefined,
    name: undefined,
    description: undefined,
    blockSizes: undefined,
  };
}

/**
 * One message of the server.
 * @throws WireError when the server is wrong, or refuses what was asked; the session must end
 */
export function stepClientNegotiation(state: ClientNegotiation, event: ClientNegotiationEvent): ClientNegotiationStep {
  if (state.phase === 'greeting' && event.kind === 'greeting') return onGreeting(state, event.bytes);
  if (state.phase === 'export-name' && event.kind === 'export-name-reply') {
    return finish({ ...state, size: event.reply });
  }
  if (state.phase === 'tls' && event.kind === 'secured') return afterGreeting(state);
  if (event.kind !== 'reply') {
    throw new RangeError(`Cannot take ${event.kind} in state ${state.phase} of the NBD handshake`);
  }
  const { reply } = event;
  const expected = optionOfPhase(state.phase);
  if (reply.option !== expected) {
    throw wrong(`Cannot take a reply to ${optionName(reply.option)}: ${optionName(expected ?? 0)} was sent`);
  }
  switch (state.phase) {
    case 'starttls':
      if (reply.type === REP.ACK) {
        return { state: { ...state, phase: 'tls' }, out: [], effect: { kind: 'starttls' } };
      }
      return failedOption(state, reply, state.wishes.tls === 'allow' ? afterGreeting : undefined);
    case 'extended':
      return reply.type === REP.ACK
        ? askMeta({ ...state, structured: true, extended: true })
        : failedOption(state, reply, askStructured);
    case 'structured':
      return reply.type === REP.ACK ? askMeta({ ...state, structured: true }) : failedOption(state, reply, openExport);
    case 'meta':
      return onMetaReply(state, reply);
    case 'go':
      return onGoReply(state, reply);
    case 'list':
      return onListReply(state, reply);
    default:
      throw wrong(`Cannot take a reply to ${optionName(reply.option)}: none is expected`);
  }
}

function onGreeting(before: ClientNegotiation, bytes: Uint8Array): ClientNegotiationStep {
  const { flags } = decodeGreeting(bytes);
  const fixed = (flags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) !== 0;
  const state = { ...before, noZeroes: (flags & HANDSHAKE_FLAG.NO_ZEROES) !== 0 };
  // Only what the server offered: others close on unknown bits, and so do we.
  const answer = encodeClientFlags(
    (fixed ? CLIENT_FLAG.FIXED_NEWSTYLE : 0) | (state.noZeroes ? CLIENT_FLAG.NO_ZEROES : 0),
  );
  const { tls = 'off' } = state.wishes;
  if (!fixed) {
    if (tls === 'require') throw wrong('Cannot start TLS: server does not speak fixed newstyle', 'ERR_WIRE_STATE');
    if (state.wishes.list) throw wrong('Cannot list exports: server does not speak fixed newstyle', 'ERR_WIRE_STATE');
    return withFirst(answer, openByName(state));
  }
  if (tls === 'off') return withFirst(answer, afterGreeting(state));
  return { state: { ...state, phase: 'starttls' }, out: [answer, encodeOption(OPT.STARTTLS)], effect: undefined };
}

/** The first option of the haggling proper. */
function afterGreeting(state: ClientNegotiation): ClientNegotiationStep {
  if (state.wishes.list) {
    return { state: { ...state, phase: 'list' }, out: [encodeOption(OPT.LIST)], effect: undefined };
  }
  if (state.wishes.structured === false) return openExport(state);
  if (state.wishes.extended === false) return askStructured(state);
  return { state: { ...state, phase: 'extended' }, out: [encodeOption(OPT.EXTENDED_HEADERS)], effect: undefined };
}

function askStructured(state: ClientNegotiation): ClientNegotiationStep {
  return { state: { ...state, phase: 'structured' }, out: [encodeOption(OPT.STRUCTURED_REPLY)], effect: undefined };
}

function askMeta(state: ClientNegotiation): ClientNegotiationStep {
  const { exportName, contexts = [] } = state.wishes;
  if (contexts.length === 0) return openExport(state);
  const data = encodeMetaContextRequest({ exportName, queries: contexts });
  return { state: { ...state, phase: 'meta' }, out: [encodeOption(OPT.SET_META_CONTEXT, data)], effect: undefined };
}

function openExport(state: ClientNegotiation): ClientNegotiationStep {
  const data = encodeInfoRequest({
    name: state.wishes.exportName,
    requests: [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE],
  });
  return { state: { ...state, phase: 'go' }, out: [encodeOption(OPT.GO, data)], effect: undefined };
}

function openByName(state: ClientNegotiation): ClientNegotiationStep {
  // A server that has extended headers has GO, too; by name, no client of the specification may ask then.
  if (state.extended) throw wrong('Cannot open the export: server has extended headers and no NBD_OPT_GO');
  const name = new TextEncoder().encode(state.wishes.exportName);
  return { state: { ...state, phase: 'export-name' }, out: [encodeOption(OPT.EXPORT_NAME, name)], effect: undefined };
}

function onMetaReply(state: ClientNegotiation, reply: OptionReply): ClientNegotiationStep {
  if (reply.type === REP.ACK) return openExport(state);
  // No contexts is a lesser session, not a failed one; a missing export will be told by GO.
  if (reply.type !== REP.META_CONTEXT) return failedOption({ ...state, contexts: [] }, reply, openExport);
  const context = decodeMetaContext(reply.data);
  if (!(state.wishes.contexts ?? []).includes(context.name)) {
    throw wrong(`Cannot take meta context ${JSON.stringify(context.name)}: it was not asked for`);
  }
  if (state.contexts.some((other) => other.id === context.id || other.name === context.name)) {
    throw wrong(`Cannot take meta context ${JSON.stringify(context.name)}: it came twice`);
  }
  return { state: { ...state, contexts: [...state.contexts, context] }, out: [], effect: undefined };
}

function onGoReply(before: ClientNegotiation, reply: OptionReply): ClientNegotiationStep {
  if (reply.type === REP.ACK) return finish(before);
  if (reply.type === REP.ERR_UNSUP) return openByName(before);
  if (reply.type !== REP.INFO) return failedOption(before, reply, undefined);
  if (before.infoReplies === MAX_INFO_REPLIES) throw wrong('Cannot take more NBD_REP_INFO: too many', 'ERR_WIRE_LIMIT');
  const state = { ...before, infoReplies: before.infoReplies + 1 };
  const information = decodeInformation(reply.data);
  switch (information.type) {
    case INFO.EXPORT:
      return quiet({ ...state, size: { sizeBytes: information.sizeBytes, flags: information.flags } });
    case INFO.NAME:
      return quiet({ ...state, name: information.name });
    case INFO.DESCRIPTION:
      return quiet({ ...state, description: information.description });
    case INFO.BLOCK_SIZE:
      return quiet({ ...state, blockSizes: checkBlockSizes(information.blockSizes) });
    default:
      return quiet(state);
  }
}

function onListReply(state: ClientNegotiation, reply: OptionReply): ClientNegotiationStep {
  if (reply.type === REP.ACK) {
    return {
      state: { ...state, phase: 'listed' },
      out: [encodeOption(OPT.ABORT)],
      effect: { kind: 'listed', exports: state.listed },
    };
  }
  if (reply.type !== REP.SERVER) return failedOption(state, reply, undefined);
  if (state.listed.length === MAX_LISTED_EXPORTS) {
    throw wrong(`Cannot list more than ${MAX_LISTED_EXPORTS} exports`, 'ERR_WIRE_LIMIT');
  }
  return quiet({ ...state, listed: [...state.listed, decodeListedExport(reply.data)] });
}

function finish(state: ClientNegotiation): ClientNegotiationStep {
  const { size } = state;
  if (size === undefined) throw wrong('Cannot open the export: NBD_OPT_GO was acknowledged without its size');
  // CVE-2023-5215: a size from 2^63 up turns negative elsewhere.
  if (size.sizeBytes >= MAX_EXPORT_BYTES) {
    throw wrong(`Cannot open the export: ${size.sizeBytes} bytes, limit is 2^63`, 'ERR_WIRE_LIMIT');
  }
  const agreed: AgreedExport = {
    name: state.name ?? state.wishes.exportName,
    description: state.description,
    sizeBytes: size.sizeBytes,
    flags: size.flags,
    blockSizes: state.blockSizes ?? DEFAULT_BLOCK_SIZES,
    structured: state.structured,
    extended: state.extended,
    contexts: state.contexts,
  };
  return { state: { ...state, phase: 'transmission' }, out: [], effect: { kind: 'transmit', export: agreed } };
}

function checkBlockSizes(sizes: BlockSizes): BlockSizes {
  const { minimum, preferred, maximum } = sizes;
  const isPower = (value: number) => value > 0 && (value & (value - 1)) === 0;
  if (
    !isPower(minimum) ||
    minimum > 65536 ||
    !isPower(preferred) ||
    preferred < 512 ||
    preferred < minimum ||
    maximum < preferred ||
    (maximum !== 0xffff_ffff && maximum % minimum !== 0)
  ) {
    throw wrong(`Cannot use block sizes ${minimum}/${preferred}/${maximum}: not powers of two in order`);
  }
  return sizes;
}

/** An error answer: go on without it where that makes sense, else the session fails with the server's text. */
function failedOption(
  state: ClientNegotiation,
  reply: OptionReply,
  goOn: ((state: ClientNegotiation) => ClientNegotiationStep) | undefined,
): ClientNegotiationStep {
  if (reply.type < 0x8000_0000) {
    throw wrong(`Cannot take reply type ${reply.type} to ${optionName(reply.option)}: not expected`);
  }
  const fatal = reply.type === REP.ERR_TLS_REQD || reply.type === REP.ERR_SHUTDOWN;
  if (goOn !== undefined && !fatal) return goOn(state);
  const reason = Object.entries(REP).find(([, value]) => value === reply.type)?.[0] ?? `error ${reply.type}`;
  const text = new TextDecoder().decode(reply.data.subarray(0, 200)).replace(/[^\x20-\x7e]/g, '?');
  throw new WireError(
    'ERR_WIRE_STATE',
    `Cannot do ${optionName(reply.option)}: server says ${reason} ${text}`.trimEnd(),
  );
}

function optionOfPhase(phase: ClientNegotiation['phase']): number | undefined {
  if (phase === 'starttls') return OPT.STARTTLS;
  if (phase === 'extended') return OPT.EXTENDED_HEADERS;
  if (phase === 'structured') return OPT.STRUCTURED_REPLY;
  if (phase === 'meta') return OPT.SET_META_CONTEXT;
  if (phase === 'go') return OPT.GO;
  if (phase === 'list') return OPT.LIST;
  return undefined;
}

function quiet(state: ClientNegotiation): ClientNegotiationStep {
  return { state, out: [], effect: undefined };
}

function withFirst(first: Uint8Array, step: ClientNegotiationStep): ClientNegotiationStep {
  return { ...step, out: [first, ...step.out] };
}

function wrong(text: string, code: WireError['code'] = 'ERR_WIRE_VALUE'): WireError {
  return new WireError(code, text, { message: 'NBD option reply' });
}
