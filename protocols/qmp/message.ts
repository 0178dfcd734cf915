import { formatJson, type JsonObject, type JsonValue, parseJson } from './json.ts';
import { MAX_ID_BYTES } from './limits.ts';
import { QmpError } from './qmp_error.ts';
import type { QmpEventName } from './schema_types.ts';

export interface QmpVersion {
  readonly qemu: { readonly major: number; readonly minor: number; readonly micro: number };
  readonly package: string;
}

/** A client's message: shape only; whether the command exists and fits is for {@link validateCommand}. */
export interface QmpRequest {
  readonly execute: string;
  readonly arguments: JsonObject | undefined;
  /** Any JSON value, echoed in the answer */
  readonly id: JsonValue | undefined;
}

/** The request is refused, but its `id` is known and goes into the answer. */
export class QmpRequestError extends QmpError {
  readonly id: JsonValue | undefined;
  constructor(text: string, id: JsonValue | undefined) {
    super(text);
    this.id = id;
  }
}

/**
 * Decodes one message of a client.
 * @throws QmpError where it is not JSON, QmpRequestError where it is not a request
 */
export function decodeRequest(bytes: Uint8Array): QmpRequest {
  const message = parseJson(bytes);
  if (typeof message !== 'object' || message === null || Array.isArray(message)) {
    throw new QmpError('QMP input must be a JSON object');
  }
  const fields = message as JsonObject;
  const { id } = fields;
  if (id !== undefined && formatJson(id).length > MAX_ID_BYTES) {
    throw new QmpError(`QMP input member 'id' is too long: limit is ${MAX_ID_BYTES} bytes`);
  }
  for (const name of Object.keys(fields)) {
    // `exec-oob` needs the capability `oob`, which we do not offer.
    if (name !== 'execute' && name !== 'arguments' && name !== 'id') {
      throw new QmpRequestError(`QMP input member '${name.slice(0, 64)}' is unexpected`, id);
    }
  }
  const { execute, arguments: given } = fields;
  if (execute === undefined) throw new QmpRequestError("QMP input lacks member 'execute'", id);
  if (typeof execute !== 'string') throw new QmpRequestError("QMP input member 'execute' must be a string", id);
  if (given !== undefined && (typeof given !== 'object' || given === null || Array.isArray(given))) {
    throw new QmpRequestError("QMP input member 'arguments' must be an object", id);
  }
  return { execute, arguments: given as JsonObject | undefined, id };
}

/** Every line that a server sends ends with CR LF (qmp-spec §2.2). */
function line(message: unknown): string {
  return `${formatJson(message)}\r\n`;
}

export function encodeGreeting(version: QmpVersion): string {
  return line({ QMP: { version, capabilities: [] } });
}

export function encodeReturn(value: unknown, id: JsonValue | undefined): string {
  return line({ return: value ?? {}, id });
}

export function encodeError(error: QmpError, id: JsonValue | undefined): string {
  return line({ error: { class: error.class, desc: error.message }, id });
}

/** `timeMs`: since 1970, with its fraction */
export function encodeEvent(event: QmpEventName, data: object | undefined, timeMs: number): string {
  const seconds = Math.floor(timeMs / 1000);
  const timestamp = { seconds, microseconds: Math.floor((timeMs - seconds * 1000) * 1000) };
  return line({ timestamp, event, data });
}

/** What a client gets. */
export type QmpServerMessage =
  | { readonly kind: 'greeting'; readonly version: JsonObject }
  | { readonly kind: 'return'; readonly value: JsonValue; readonly id: JsonValue | undefined }
  | { readonly kind: 'error'; readonly error: QmpError; readonly id: JsonValue | undefined }
  | { readonly kind: 'event'; readonly event: string; readonly data: JsonValue };

/** Decodes one message of a server. @throws QmpError */
export function decodeServerMessage(bytes: Uint8Array): QmpServerMessage {
  const message = asObject(parseJson(bytes, { maxDepth: 64, maxValues: 1 << 20 }), 'message');
  const { id } = message;
  if (message.QMP !== undefined) {
    return { kind: 'greeting', version: asObject(asObject(message.QMP, 'QMP').version, 'version') };
  }
  if (message.return !== undefined) return { kind: 'return', value: message.return, id };
  if (message.error !== undefined) {
    const { class: errorClass, desc } = asObject(message.error, 'error');
    const known =
      errorClass === 'CommandNotFound' || errorClass === 'DeviceNotActive' || errorClass === 'DeviceNotFound';
    return { kind: 'error', error: new QmpError(String(desc), known ? errorClass : 'GenericError'), id };
  }
  if (typeof message.event === 'string') {
    return { kind: 'event', event: message.event, data: message.data ?? null };
  }
  throw new QmpError('Cannot read a QMP message: neither greeting, return, error nor event');
}

function asObject(value: JsonValue | undefined, what: string): JsonObject {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new QmpError(`Cannot read a QMP message: ${what} is not an object`);
  }
  return value as JsonObject;
}
