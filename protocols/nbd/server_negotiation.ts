import { WireError } from '../bytes/mod.ts';
import {
  CLIENT_FLAG,
  HANDSHAKE_FLAG,
  INFO,
  OPT,
  optionName,
  QEMU_DIRTY_BITMAP,
  REP,
  TRANSMISSION_FLAG,
} from './constants.ts';
import type { ExportDescription, ExportSummary, MetaContext } from './export.ts';
import { encodeExportNameReply, encodeGreeting } from './greeting.ts';
import { MAX_OPTION_BYTES, MAX_OPTIONS, OPTIONS_PER_LISTED_EXPORT } from './limits.ts';
import {
  boundedText,
  decodeExportName,
  decodeInfoRequest,
  decodeMetaContextRequest,
  encodeOptionReply,
  type InfoRequest,
  type MetaContextRequest,
  type Option,
} from './option.ts';
import { encodeInformation, encodeListedExport, encodeMetaContext } from './option_reply.ts';

// Fixed newstyle, the server's side, as a pure state machine:
//
//   client-flags ──flags──► options ──INFO GO EXPORT_NAME *_META_CONTEXT──► describing ──► options
//                             │  ▲                                              │
//                             ├──┴─LIST──► listing ──► options                  ├──GO, EXPORT_NAME──► transmission
//                             ├────STARTTLS──► tls ──secured──► options         │
//                             └──ABORT, too many, wrong──► closed ◄─────────────┘
//
// What was agreed before TLS is forgotten behind it: somebody in between may have said it.
//
// The client is untrusted in every state. `describing` and `listing` wait for our own side: nothing of the
// client is looked at meanwhile, so that opening an export may take its time.

/** What a client asked for and has to be looked up. */
type Pending =
  | { readonly option: typeof OPT.INFO | typeof OPT.GO; readonly request: InfoRequest }
  | { readonly option: typeof OPT.EXPORT_NAME; readonly name: string }
  | {
      readonly option: typeof OPT.LIST_META_CONTEXT | typeof OPT.SET_META_CONTEXT;
      readonly request: MetaContextRequest;
    };

/** The modes of the specification's "TLS support": NOTLS, FORCEDTLS, SELECTIVETLS */
export type ServerTlsMode = 'off' | 'require' | 'allow';

export interface ServerNegotiation {
  readonly phase: 'client-flags' | 'options' | 'describing' | 'listing' | 'tls' | 'transmission' | 'closed';
  readonly tls: ServerTlsMode;
  /** Structured replies and extended headers are options that this server does not know */
  readonly simpleOnly: boolean;
  /** The stream is TLS by now */
  readonly secure: boolean;
  /** The client knows fixed newstyle; without it only EXPORT_NAME is allowed */
  readonly fixed: boolean;
  readonly noZeroes: boolean;
  readonly structured: boolean;
  /** Extended headers, which have everything that structured replies have */
  readonly extended: boolean;
  /** What SET_META_CONTEXT selected, and for which export */
  readonly selected: { readonly exportName: string; readonly contexts: readonly MetaContext[] } | undefined;
  readonly optionsLeft: number;
  readonly pending: Pending | undefined;
}

export type ServerNegotiationEvent =
  | { readonly kind: 'client-flags'; readonly flags: number }
  | { readonly kind: 'option'; readonly option: Option }
  /** Answer to the effect `describe`; undefined: no such export */
  | { readonly kind: 'described'; readonly export: ExportDescription | undefined }
  /** Answer to the effect `list`; undefined: policy forbids it */
  | { readonly kind: 'listed'; readonly exports: readonly ExportSummary[] | undefined }
  /** Answer to the effect `starttls`: from here on everything goes over TLS */
  | { readonly kind: 'secured' }
  /** We are going away: options are answered with ERR_SHUTDOWN */
  | { readonly kind: 'shutdown' };

export type ServerNegotiationEffect =
  | { readonly kind: 'describe'; readonly name: string }
  | { readonly kind: 'list' }
  /**
   * Send what is in `out` as the last plain text and start the server's end of TLS. Plain text of the client that is
   * there already is an attack on it (CVE-2021-3716): the session must end instead
   */
  | { readonly kind: 'starttls' }
  /** The handshake is done; `export.flags` are as the client was told */
  | { readonly kind: 'transmit'; readonly export: ExportDescription; readonly contexts: readonly MetaContext[] }
  /** Send what is in `out`, then end the stream. `error` where the client is to blame */
  | { readonly kind: 'close'; readonly error: WireError | undefined };

export interface ServerNegotiationStep {
  readonly state: ServerNegotiation;
  readonly out: readonly Uint8Array[];
  readonly effect: ServerNegotiationEffect | undefined;
}

/** The greeting goes out before anything is read. */
export function startServerNegotiation(tls: ServerTlsMode = 'off', simpleOnly = false): ServerNegotiationStep {
  return {
    state: {
      phase: 'client-flags',
      tls,
      simpleOnly,
      secure: false,
      fixed: false,
      noZeroes: false,
      structured: false,
      extended: false,
      selected: undefined,
      optionsLeft: MAX_OPTIONS,
      pending: undefined,
    },
    out: [encodeGreeting({ flags: HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES })],
    effect: undefined,
  };
}

/** One event; anything that the state does not allow ends the session. */
export function stepServerNegotiation(state: ServerNegotiation, event: ServerNegotiationEvent): ServerNegotiationStep {
  if (event.kind === 'shutdown') return shutdown(state);
  if (state.phase === 'client-flags' && event.kind === 'client-flags') return onClientFlags(state, event.flags);
  if (state.phase === 'options' && event.kind === 'option') return onOption(state, event.option);
  if (state.phase === 'describing' && event.kind === 'described') return onDescribed(state, event.export);
  if (state.phase === 'listing' && event.kind === 'listed') return onListed(state, event.exports);
  if (state.phase === 'tls' && event.kind === 'secured') {
    return stay({ ...state, phase: 'options', secure: true, structured: false, extended: false, selected: undefined });
  }
  throw new RangeError(`Cannot take ${event.kind} in state ${state.phase} of the NBD handshake`);
}

function onClientFlags(state: ServerNegotiation, flags: number): ServerNegotiationStep {
  const known = CLIENT_FLAG.FIXED_NEWSTYLE | CLIENT_FLAG.NO_ZEROES;
  if ((flags & ~known) !== 0) {
    return close(
      state,
      'ERR_WIRE_VALUE',
      `Cannot accept NBD client flags 0x${(flags >>> 0).toString(16)}: unknown bits`,
    );
  }
  return stay({
    ...state,
    phase: 'options',
    fixed: (flags & CLIENT_FLAG.FIXED_NEWSTYLE) !== 0,
    noZeroes: (flags & CLIENT_FLAG.NO_ZEROES) !== 0,
  });
}

function onOption(before: ServerNegotiation, { option, data }: Option): ServerNegotiationStep {
  if (before.optionsLeft === 0) return close(before, 'ERR_WIRE_LIMIT', 'Cannot take another NBD option: too many');
  const state = { ...before, optionsLeft: before.optionsLeft - 1 };
  if (option === OPT.EXPORT_NAME) return onExportName(state, data);
  if (!state.fixed) {
    return close(state, 'ERR_WIRE_STATE', `Cannot take ${optionName(option)}: client did not say FIXED_NEWSTYLE`);
  }
  // "NBD_OPT_ABORT: the server MUST NOT look at the data"
  if (option === OPT.ABORT) {
    return {
      state: { ...state, phase: 'closed' },
      out: [encodeOptionReply(option, REP.ACK)],
      effect: { kind: 'close', error: undefined },
    };
  }
  if (needsTls(state) && option !== OPT.STARTTLS) {
    return refuse(state, option, REP.ERR_TLS_REQD, 'TLS has to come first');
  }
  if (data.length > MAX_OPTION_BYTES) {
    return refuse(state, option, REP.ERR_TOO_BIG, `${data.length} bytes, limit is ${MAX_OPTION_BYTES}`);
  }
  // Clients go on without: "SHOULD be prepared to also handle NBD_REP_ERR_UNSUP"
  if (state.simpleOnly && (option === OPT.STRUCTURED_REPLY || option === OPT.EXTENDED_HEADERS)) {
    return refuse(state, option, REP.ERR_UNSUP, 'replies are simple here');
  }
  switch (option) {
    case OPT.LIST:
      if (data.length > 0) return refuse(state, option, REP.ERR_INVALID, 'data must be empty');
      return { state: { ...state, phase: 'listing' }, out: [], effect: { kind: 'list' } };
    case OPT.STARTTLS:
      if (data.length > 0) return refuse(state, option, REP.ERR_INVALID, 'data must be empty');
      if (state.secure) return refuse(state, option, REP.ERR_INVALID, 'TLS is on already');
      // "NOTLS mode": never ERR_TLS_REQD, and the session goes on in clear text
      if (state.tls === 'off') return refuse(state, option, REP.ERR_POLICY, 'TLS is not enabled here');
      return {
        state: { ...state, phase: 'tls' },
        out: [encodeOptionReply(option, REP.ACK)],
        effect: { kind: 'starttls' },
      };
    case OPT.STRUCTURED_REPLY:
      if (data.length > 0) return refuse(state, option, REP.ERR_INVALID, 'data must be empty');
      // "EXTENDED_HEADERS takes precedence": there is no way back.
      if (state.extended) return refuse(state, option, REP.ERR_EXT_HEADER_REQD, 'extended headers are on already');
      if (state.structured) return refuse(state, option, REP.ERR_INVALID, 'structured replies are on already');
      return { state: { ...state, structured: true }, out: [encodeOptionReply(option, REP.ACK)], effect: undefined };
    case OPT.EXTENDED_HEADERS:
      if (data.length > 0) return refuse(state, option, REP.ERR_INVALID, 'data must be empty');
      if (state.extended) return refuse(state, option, REP.ERR_INVALID, 'extended headers are on already');
      return {
        state: { ...state, structured: true, extended: true },
        out: [encodeOptionReply(option, REP.ACK)],
        effect: undefined,
      };
    case OPT.INFO:
    case OPT.GO:
      return decoded(state, option, REP.ERR_INVALID, () => {
        const request = decodeInfoRequest(data);
        return describe(state, request.name, { option, request });
      });
    case OPT.SET_META_CONTEXT:
    case OPT.LIST_META_CONTEXT: {
      // A failed SET leaves no context selected.
      const cleared = option === OPT.SET_META_CONTEXT ? { ...state, selected: undefined } : state;
      if (!state.structured) return refuse(cleared, option, REP.ERR_INVALID, 'structured replies are off');
      return decoded(cleared, option, REP.ERR_TOO_BIG, () => {
        const request = decodeMetaContextRequest(data);
        return describe(cleared, request.exportName, { option, request });
      });
    }
    default:
      return refuse(state, option, REP.ERR_UNSUP, 'option is not known here');
  }
}

function onExportName(state: ServerNegotiation, data: Uint8Array): ServerNegotiationStep {
  // No error can be answered to this option: its only refusal is to close.
  if (needsTls(state)) return close(state, 'ERR_WIRE_STATE', 'Cannot serve NBD_OPT_EXPORT_NAME: TLS has to come first');
  if (state.extended) {
    return close(state, 'ERR_WIRE_STATE', 'Cannot serve NBD_OPT_EXPORT_NAME: extended headers need NBD_OPT_GO');
  }
  let name: string;
  try {
    name = decodeExportName(data);
  } catch (error) {
    if (!(error instanceof WireError)) throw error;
    return closeWith(state, error);
  }
  return describe(state, name, { option: OPT.EXPORT_NAME, name });
}

function needsTls(state: ServerNegotiation): boolean {
  return state.tls === 'require' && !state.secure;
}

function onDescribed(state: ServerNegotiation, asked: ExportDescription | undefined): ServerNegotiationStep {
  const pending = state.pending!;
  const next: ServerNegotiation = { ...state, phase: 'options', pending: undefined };
  const hidden = asked?.tlsRequired === true && !state.secure;
  // "SELECTIVETLS mode": told to who could do better; without any TLS such an export is not there at all.
  if (hidden && state.tls === 'allow' && pending.option !== OPT.EXPORT_NAME) {
    return refuse(next, pending.option, REP.ERR_TLS_REQD, 'the export is for clients with TLS');
  }
  const found = hidden ? undefined : asked;
  if (pending.option === OPT.EXPORT_NAME) {
    if (found === undefined) return close(next, 'ERR_WIRE_VALUE', 'Cannot serve NBD_OPT_EXPORT_NAME: no such export');
    const described = withSessionFlags(next, found);
    return transmit(next, described, [encodeExportNameReply(described, next.noZeroes)]);
  }
  const { option, request } = pending;
  if (found === undefined) return refuse(next, option, REP.ERR_UNKNOWN, 'no such export');
  if (option === OPT.SET_META_CONTEXT || option === OPT.LIST_META_CONTEXT) {
    return answerMetaContexts(next, option, request as MetaContextRequest, found);
  }
  const { requests } = request as InfoRequest;
  if (found.blockSizes.minimum > 1 && !requests.includes(INFO.BLOCK_SIZE)) {
    return refuse(next, option, REP.ERR_BLOCK_SIZE_REQD, `blocks have ${found.blockSizes.minimum} bytes`);
  }
  const described = withSessionFlags(next, found);
  const out = [...informationReplies(option, requests, described), encodeOptionReply(option, REP.ACK)];
  if (option === OPT.INFO) return { state: next, out, effect: undefined };
  return transmit(next, described, out);
}

function informationReplies(option: number, requests: readonly number[], found: ExportDescription): Uint8Array[] {
  const { sizeBytes, flags, name, description, blockSizes } = found;
  const out = [encodeInformation({ type: INFO.EXPORT, sizeBytes, flags })];
  if (requests.includes(INFO.NAME)) out.push(encodeInformation({ type: INFO.NAME, name }));
  if (requests.includes(INFO.DESCRIPTION) && description !== undefined) {
    out.push(encodeInformation({ type: INFO.DESCRIPTION, description }));
  }
  if (requests.includes(INFO.BLOCK_SIZE)) out.push(encodeInformation({ type: INFO.BLOCK_SIZE, blockSizes }));
  return out.map((data) => encodeOptionReply(option, REP.INFO, data));
}

function answerMetaContexts(
  state: ServerNegotiation,
  option: number,
  request: MetaContextRequest,
  found: ExportDescription,
): ServerNegotiationStep {
  const listing = option === OPT.LIST_META_CONTEXT;
  const chosen = found.contexts.filter((name) =>
    listing && request.queries.length === 0 ? true : request.queries.some((query) => matches(query, name, listing)),
  );
  const contexts = chosen.map((name, index) => ({ id: index + 1, name }));
  const out = contexts.map((context) => encodeOptionReply(option, REP.META_CONTEXT, encodeMetaContext(context)));
  out.push(encodeOptionReply(option, REP.ACK));
  const selected = listing ? state.selected : { exportName: found.name, contexts };
  return { state: { ...state, selected }, out, effect: undefined };
}

/** Unknown namespaces match nothing; a namespace alone (`base:`), and QEMU's of bitmaps, are wildcards for LIST only. */
function matches(query: string, name: string, listing: boolean): boolean {
  if (query === name) return true;
  if (!listing) return false;
  return query === name.slice(0, name.indexOf(':') + 1) || (query === QEMU_DIRTY_BITMAP && name.startsWith(query));
}

function onListed(state: ServerNegotiation, exports: readonly ExportSummary[] | undefined): ServerNegotiationStep {
  const next: ServerNegotiation = { ...state, phase: 'options' };
  if (exports === undefined) return refuse(next, OPT.LIST, REP.ERR_POLICY, 'listing is not allowed');
  const out = exports.map((summary) => encodeOptionReply(OPT.LIST, REP.SERVER, encodeListedExport(summary)));
  out.push(encodeOptionReply(OPT.LIST, REP.ACK));
  const earned = Math.min(exports.length * OPTIONS_PER_LISTED_EXPORT, MAX_OPTIONS - next.optionsLeft);
  return { state: { ...next, optionsLeft: next.optionsLeft + earned }, out, effect: undefined };
}

function withSessionFlags(state: ServerNegotiation, found: ExportDescription): ExportDescription {
  if (!state.structured) return found;
  let flags = found.flags | TRANSMISSION_FLAG.SEND_DF;
  // A filter of nothing makes no sense.
  const filters = state.selected?.exportName === found.name && state.selected.contexts.length > 0;
  if (state.extended && filters) flags |= TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD;
  return { ...found, flags };
}

function transmit(state: ServerNegotiation, found: ExportDescription, out: Uint8Array[]): ServerNegotiationStep {
  // Contexts belong to the export they were selected for.
  const contexts = state.selected?.exportName === found.name ? state.selected.contexts : [];
  return { state: { ...state, phase: 'transmission' }, out, effect: { kind: 'transmit', export: found, contexts } };
}

function describe(state: ServerNegotiation, name: string, pending: Pending): ServerNegotiationStep {
  return { state: { ...state, phase: 'describing', pending }, out: [], effect: { kind: 'describe', name } };
}

function decoded(
  state: ServerNegotiation,
  option: number,
  limitReply: number,
  decode: () => ServerNegotiationStep,
): ServerNegotiationStep {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof WireError)) throw error;
    return refuse(state, option, error.code === 'ERR_WIRE_LIMIT' ? limitReply : REP.ERR_INVALID, error.message);
  }
}

function shutdown(state: ServerNegotiation): ServerNegotiationStep {
  const closed: ServerNegotiation = { ...state, phase: 'closed', pending: undefined };
  const option = state.phase === 'listing' ? OPT.LIST : state.pending?.option;
  const out: Uint8Array[] = [];
  if (option !== undefined && option !== OPT.EXPORT_NAME) {
    out.push(encodeOptionReply(option, REP.ERR_SHUTDOWN, boundedText('server is shutting down')));
  }
  return { state: closed, out, effect: { kind: 'close', error: undefined } };
}

function stay(state: ServerNegotiation): ServerNegotiationStep {
  return { state, out: [], effect: undefined };
}

function refuse(state: ServerNegotiation, option: number, reply: number, why: string): ServerNegotiationStep {
  const text = why.startsWith('Cannot ') ? why : `Cannot do ${optionName(option)}: ${why}`;
  return { state, out: [encodeOptionReply(option, reply, boundedText(text))], effect: undefined };
}

function close(state: ServerNegotiation, code: WireError['code'], text: string): ServerNegotiationStep {
  return closeWith(state, new WireError(code, text));
}

function closeWith(state: ServerNegotiation, error: WireError): ServerNegotiationStep {
  return { state: { ...state, phase: 'closed' }, out: [], effect: { kind: 'close', error } };
}
