import { CMD, CMD_FLAG, commandName, NBD_ERROR, TRANSMISSION_FLAG } from './constants.ts';
import type { BlockSizes } from './export.ts';
import { isReadOnly } from './export.ts';
import type { Request } from './request.ts';

/** What a request is judged against; fixed when the transmission phase starts. */
export interface TransmissionTerms {
  /** In `bytes` */
  readonly sizeBytes: bigint;
  /** Transmission flags as this client was told */
  readonly flags: number;
  readonly blockSizes: BlockSizes;
  /** Structured replies were negotiated */
  readonly structured: boolean;
  /** Extended headers were negotiated: WRITE says that it has a payload, BLOCK_STATUS may have one */
  readonly extended?: boolean;
  /** Number of meta contexts selected for this export */
  readonly contexts: number;
  /** Data of one READ or WRITE, in `bytes` */
  readonly maxPayloadBytes: number;
}

declare const checked: unique symbol;

/** A request that passed every refusal below: the only kind that reaches an image. */
export interface CheckedRequest {
  readonly [checked]: true;
  /** Known and allowed here */
  readonly type: number;
  readonly cookie: bigint;
  /** offset + length is inside the export, both exact integers, in `bytes`. RESIZE: the new size, and 0 */
  readonly offset: number;
  readonly length: number;
  readonly fua: boolean;
  /** WRITE_ZEROES: the range must stay allocated */
  readonly noHole: boolean;
  /** WRITE_ZEROES: refuse rather than write the zeroes out */
  readonly fastZero: boolean;
  /** BLOCK_STATUS: one extent only */
  readonly oneExtent: boolean;
  /** BLOCK_STATUS: ids of the contexts to answer for; undefined: all that were selected */
  readonly contextIds?: readonly number[];
}

export type Verdict =
  | { readonly accepted: true; readonly request: CheckedRequest }
  /** Answered with `error`; its payload is skipped, the session goes on */
  | { readonly accepted: false; readonly error: number; readonly text: string };

/** Flags that a command may carry at all */
const allowedFlags = byCommand([
  [CMD.READ, CMD_FLAG.FUA | CMD_FLAG.DF],
  [CMD.WRITE, CMD_FLAG.FUA],
  [CMD.DISC, CMD_FLAG.FUA],
  [CMD.FLUSH, CMD_FLAG.FUA],
  [CMD.TRIM, CMD_FLAG.FUA],
  [CMD.CACHE, 0],
  [CMD.WRITE_ZEROES, CMD_FLAG.FUA | CMD_FLAG.NO_HOLE | CMD_FLAG.FAST_ZERO],
  [CMD.BLOCK_STATUS, CMD_FLAG.FUA | CMD_FLAG.REQ_ONE],
  [CMD.RESIZE, CMD_FLAG.FUA],
]);

/** What the server must have advertised for a command */
const neededFlag = byCommand([
  [CMD.FLUSH, TRANSMISSION_FLAG.SEND_FLUSH],
  [CMD.TRIM, TRANSMISSION_FLAG.SEND_TRIM],
  [CMD.CACHE, TRANSMISSION_FLAG.SEND_CACHE],
  [CMD.WRITE_ZEROES, TRANSMISSION_FLAG.SEND_WRITE_ZEROES],
  [CMD.RESIZE, TRANSMISSION_FLAG.SEND_RESIZE],
]);

/** A table by the command's number, of one kind of element: it is looked at with each request. */
function byCommand(entries: readonly (readonly [number, number])[]): readonly (number | undefined)[] {
  const table = new Array<number | undefined>(Math.max(...Object.values(CMD)) + 1).fill(undefined);
  for (const [command, flags] of entries) table[command] = flags;
  return table;
}

/** Commands that a read-only export refuses. */
export function changesExport(type: number): boolean {
  return type === CMD.WRITE || type === CMD.TRIM || type === CMD.WRITE_ZEROES || type === CMD.RESIZE;
}

/** The flat list of refusals; what passes is not checked again. */
export function validateRequest(request: Request, terms: TransmissionTerms): Verdict {
  const { type, offset, length } = request;
  const hasPayload = terms.extended === true && (request.flags & CMD_FLAG.PAYLOAD_LEN) !== 0;
  const flags = hasPayload ? request.flags & ~CMD_FLAG.PAYLOAD_LEN : request.flags;
  const allowed = type < allowedFlags.length ? allowedFlags[type] : undefined;
  if (allowed === undefined) return refuse(NBD_ERROR.EINVAL, `Cannot run command ${type}: not known here`);
  // A BLOCK_STATUS with one was looked into before, and comes here without the flag.
  if (hasPayload !== (terms.extended === true && type === CMD.WRITE)) {
    return refuse(
      NBD_ERROR.EINVAL,
      `Cannot run ${commandName(type)}: PAYLOAD_LEN is ${hasPayload ? 'set' : 'missing'}`,
    );
  }
  if ((flags & ~allowed) !== 0) {
    return refuse(
      NBD_ERROR.EINVAL,
      `Cannot run ${commandName(type)}: flags 0x${flags.toString(16)}, allowed are ${allowed}`,
    );
  }
  if ((flags & CMD_FLAG.FUA) !== 0 && !has(terms, TRANSMISSION_FLAG.SEND_FUA)) {
    return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: FUA was not advertised`);
  }
  if ((flags & CMD_FLAG.DF) !== 0 && !terms.structured) {
    return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: DF needs structured replies`);
  }
  // nbdkit 1.32 aborts on this one.
  if ((flags & CMD_FLAG.FAST_ZERO) !== 0 && !has(terms, TRANSMISSION_FLAG.SEND_FAST_ZERO)) {
    return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: FAST_ZERO was not advertised`);
  }
  if (changesExport(type) && isReadOnly(terms.flags)) {
    return refuse(NBD_ERROR.EPERM, `Cannot run ${commandName(type)}: export is read-only`);
  }
  const needed = neededFlag[type];
  if (needed !== undefined && !has(terms, needed)) {
    return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: not advertised`);
  }
  if (type === CMD.FLUSH || type === CMD.DISC) {
    // "NBD_CMD_FLUSH: offset and length are reserved, must be zero"
    if (type === CMD.FLUSH && (offset !== 0n || length !== 0)) {
      return refuse(
        NBD_ERROR.EINVAL,
        `Cannot run ${commandName(type)}: offset ${offset} and length ${length}, expected 0`,
      );
    }
    // What DISC carries there is not looked at, and reaches nobody.
    return accept({ ...request, length: 0 }, 0);
  }
  if (type === CMD.RESIZE) return judgeResize(request, terms);
  if (type === CMD.BLOCK_STATUS) {
    if (terms.contexts === 0) {
      return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: no meta context was selected`);
    }
    if (length === 0) return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: length is 0`);
  }
  if ((type === CMD.READ || type === CMD.WRITE) && length > terms.maxPayloadBytes) {
    return refuse(
      NBD_ERROR.EINVAL,
      `Cannot run ${commandName(type)}: ${length} bytes, limit is ${terms.maxPayloadBytes}`,
    );
  }
  // Exact: where the sum is below 2^53 so are both parts, and then no number was rounded on the way.
  const start = Number(offset);
  const end = start + length;
  if (end > Number.MAX_SAFE_INTEGER || end > terms.sizeBytes) return refuseRange(request, terms);
  const minimum = terms.blockSizes.minimum;
  // The export's end need not be a multiple of the minimum for the last block to be reachable.
  if (start % minimum !== 0 || (end % minimum !== 0 && BigInt(end) !== terms.sizeBytes)) {
    return refuse(
      NBD_ERROR.EINVAL,
      `Cannot run ${commandName(type)}: ${length} bytes at ${offset}, blocks have ${minimum}`,
    );
  }
  return accept(request, start);
}

/** Why offset and length do not fit. Subtraction instead of offset + length: nothing can wrap. */
function refuseRange({ type, offset, length }: Request, terms: TransmissionTerms): Verdict {
  if (offset > terms.sizeBytes || BigInt(length) > terms.sizeBytes - offset) {
    const error = type === CMD.WRITE || type === CMD.WRITE_ZEROES ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL;
    return refuse(
      error,
      `Cannot run ${commandName(type)}: ${length} bytes at ${offset}, export has ${terms.sizeBytes}`,
    );
  }
  return refuse(NBD_ERROR.EINVAL, `Cannot run ${commandName(type)}: ${length} bytes at ${offset}, images end at 2^53`);
}

/** Extension RESIZE: "the field offset is used to signal the new requested size" */
function judgeResize(request: Request, terms: TransmissionTerms): Verdict {
  const { offset, length } = request;
  if (length !== 0) return refuse(NBD_ERROR.EINVAL, `Cannot run NBD_CMD_RESIZE: length ${length}, expected 0`);
  if (offset > BigInt(Number.MAX_SAFE_INTEGER)) {
    return refuse(NBD_ERROR.ENOSPC, `Cannot run NBD_CMD_RESIZE: ${offset} bytes, images end at 2^53`);
  }
  const size = Number(offset);
  if (size % terms.blockSizes.minimum !== 0) {
    return refuse(
      NBD_ERROR.EINVAL,
      `Cannot run NBD_CMD_RESIZE: ${size} bytes, blocks have ${terms.blockSizes.minimum}`,
    );
  }
  return accept(request, size);
}

function has(terms: TransmissionTerms, flag: number): boolean {
  return (terms.flags & flag) !== 0;
}

function refuse(error: number, text: string): Verdict {
  return { accepted: false, error, text };
}

function accept(request: Request, offset: number): Verdict {
  const { flags } = request;
  return {
    accepted: true,
    request: {
      type: request.type,
      cookie: request.cookie,
      offset,
      length: request.length,
      fua: (flags & CMD_FLAG.FUA) !== 0,
      noHole: (flags & CMD_FLAG.NO_HOLE) !== 0,
      fastZero: (flags & CMD_FLAG.FAST_ZERO) !== 0,
      oneExtent: (flags & CMD_FLAG.REQ_ONE) !== 0,
    } as CheckedRequest,
  };
}
