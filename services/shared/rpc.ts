import type { Duplex } from 'node:stream';
import { WireError } from '../../protocols/bytes/mod.ts';
import { Channel } from './channel.ts';
import { decodeMessagePack, encodeMessagePack } from './messagepack.ts';
import type { Rpc } from './role.ts';

/** Frame types on a control link; the payload is one MessagePack map. */
const REQUEST = 1;
const RESPONSE = 2;
const EVENT = 3;

/** A screen shot in PPM is the largest thing that goes over a control link, in `bytes` */
const DEFAULT_MAX_PAYLOAD_BYTES = 32 << 20;
const DEFAULT_TIMEOUT_MS = 60_000;
/** Own calls that wait for an answer */
const MAX_PENDING_CALLS = 1024;
/** Calls of the other side that we are working on */
const MAX_RUNNING_REQUESTS = 256;
const MAX_NAME_LENGTH = 64;
const MAX_ERROR_TEXT_LENGTH = 4096;

export interface RpcPeerOptions {
  /** For errors and logs: the role at the other end */
  readonly name: string;
  /** Largest message either way, in `bytes` (default 32 MiB) */
  readonly maxPayloadBytes?: number;
  /** The other side does not read: above this the link is closed, in `bytes` (default two payloads) */
  readonly maxQueuedBytes?: number;
}

/** A refusal by the other side, or the end of the link (`ERR_RPC_CLOSED`, `ERR_RPC_TIMEOUT`, `ERR_RPC_BUSY`). */
export class RpcError extends Error {
  override readonly name = 'RpcError';
  readonly code: string;
  constructor(code: string, text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}

interface PendingCall {
  readonly method: string;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

type Handler = (params: unknown) => unknown | Promise<unknown>;

/**
 * Requests, responses and events between the supervisor and one role, over any byte stream. Each side may have
 * been taken over by its own peer, so each checks the other: sizes before decoding, shapes after, caps on what
 * waits, and unknown response ids are dropped (they also come late, after a timeout).
 */
export class RpcPeer implements Rpc {
  readonly #name: string;
  readonly #channel: Channel;
  readonly #maxQueuedBytes: number;
  readonly #pending = new Map<number, PendingCall>();
  readonly #running = new Set<number>();
  readonly #handlers = new Map<string, Handler>();
  readonly #listeners = new Map<string, ((data: unknown) => void)[]>();
  readonly #onClose: ((error: Error | undefined) => void)[] = [];
  #nextId = 1;
  #closed = false;
  #closeError: Error | undefined;

  constructor(stream: Duplex, options: RpcPeerOptions) {
    this.#name = options.name;
    const maxPayloadBytes = options.maxPayloadBytes ?? DEFAULT_MAX_PAYLOAD_BYTES;
    this.#maxQueuedBytes = options.maxQueuedBytes ?? maxPayloadBytes * 2;
    this.#channel = new Channel(stream, { name: `control of ${options.name}`, maxPayloadBytes });
    this.#channel.onClose((error) => this.#end(error));
    // Delivery starts in a later turn, so that whoever made this peer can register its handlers first.
    queueMicrotask(() => {
      if (!this.#closed) this.#channel.onFrame((type, payload) => this.#receive(type, payload));
    });
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Calls the other side.
   * @throws RpcError with the other side's code; or ERR_RPC_CLOSED, ERR_RPC_TIMEOUT, ERR_RPC_BUSY; or the signal's reason
   */
  call(method: string, params?: unknown, options: { signal?: AbortSignal; timeoutMs?: number } = {}): Promise<unknown> {
    const { signal, timeoutMs = DEFAULT_TIMEOUT_MS } = options;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    if (signal?.aborted) {
      reject(signal.reason);
      return promise;
    }
    if (this.#closed) {
      reject(this.#closedError(method));
      return promise;
    }
    if (this.#pending.size >= MAX_PENDING_CALLS) {
      reject(
        new RpcError(
          'ERR_RPC_BUSY',
          `Cannot call ${method} of ${this.#name}: ${MAX_PENDING_CALLS} calls wait for an answer`,
        ),
      );
      return promise;
    }
    const id = this.#nextId++;
    const timer = Number.isFinite(timeoutMs)
      ? setTimeout(() => {
          finish();
          reject(
            new RpcError('ERR_RPC_TIMEOUT', `Cannot call ${method} of ${this.#name}: no answer in ${timeoutMs} ms`),
          );
        }, timeoutMs)
      : undefined;
    const onAbort = () => {
      finish();
      reject(signal!.reason);
    };
    const finish = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      this.#pending.delete(id);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    this.#pending.set(id, {
      method,
      resolve: (value) => {
        finish();
        resolve(value);
      },
      reject: (error) => {
        finish();
        reject(error);
      },
    });
    try {
      this.#send(REQUEST, { id, method, params });
    } catch (error) {
      finish();
      reject(error);
    }
    return promise;
  }

  /** Registers the one handler of a method; what it throws goes back as an error with its `code`. */
  handle(method: string, handler: Handler): void {
    if (this.#handlers.has(method)) throw new Error(`Cannot handle ${method}: it has a handler`);
    this.#handlers.set(method, handler);
  }

  emit(event: string, data?: unknown): void {
    if (!this.#closed) this.#send(EVENT, { event, data });
  }

  on(event: string, handler: (data: unknown) => void): void {
    const listeners = this.#listeners.get(event);
    if (listeners === undefined) this.#listeners.set(event, [handler]);
    else listeners.push(handler);
  }

  onClose(handler: (error: Error | undefined) => void): void {
    if (this.#closed) handler(this.#closeError);
    else this.#onClose.push(handler);
  }

  close(): void {
    this.#channel.close();
  }

  #closedError(method: string): RpcError {
    return new RpcError('ERR_RPC_CLOSED', `Cannot call ${method} of ${this.#name}: the link is closed`, {
      cause: this.#closeError,
    });
  }

  #send(type: number, message: Record<string, unknown>): void {
    this.#channel.send(type, encodeMessagePack(message));
    if (this.#channel.stream.writableLength > this.#maxQueuedBytes) {
      this.#fail(
        new WireError(
          'ERR_WIRE_LIMIT',
          `Cannot queue more for ${this.#name}: it does not read, limit is ${this.#maxQueuedBytes} bytes`,
        ),
      );
    }
  }

  #fail(error: Error): void {
    this.#end(error);
    this.#channel.close();
  }

  /** What throws here is the other side's fault; the channel catches it and closes. */
  #receive(type: number, payload: Uint8Array): void {
    const message = decodeMessagePack(payload);
    if (typeof message !== 'object' || message === null || Array.isArray(message) || message instanceof Uint8Array) {
      throw malformed('message', 'not a map');
    }
    const fields = new Map(Object.entries(message));
    if (type === REQUEST) this.#receiveRequest(fields);
    else if (type === RESPONSE) this.#receiveResponse(fields);
    else if (type === EVENT) this.#receiveEvent(fields);
    else throw malformed('message', `type ${type} is unknown`);
  }

  #receiveRequest(fields: Map<string, unknown>): void {
    const id = takeId(fields);
    const method = takeName(fields, 'method');
    if (this.#running.has(id)) throw malformed('request', `id ${id} is in use`);
    if (this.#running.size >= MAX_RUNNING_REQUESTS) {
      this.#refuse(id, new RpcError('ERR_RPC_BUSY', `Cannot run ${method}: ${MAX_RUNNING_REQUESTS} requests run`));
      return;
    }
    const handler = this.#handlers.get(method);
    if (handler === undefined) {
      this.#refuse(id, new RpcError('ERR_RPC_METHOD', `Cannot run ${method}: unknown method`));
      return;
    }
    this.#running.add(id);
    void this.#run(id, handler, fields.get('params'));
  }

  async #run(id: number, handler: Handler, params: unknown): Promise<void> {
    try {
      const result = await handler(params);
      this.#running.delete(id);
      if (!this.#closed) this.#send(RESPONSE, { id, result });
    } catch (error) {
      this.#running.delete(id);
      this.#refuse(id, error);
    }
  }

  #refuse(id: number, error: unknown): void {
    if (this.#closed) return;
    const code =
      error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : 'ERR_FAILED';
    const text = error instanceof Error ? error.message : String(error);
    this.#send(RESPONSE, {
      id,
      error: { code: code.slice(0, MAX_NAME_LENGTH), message: text.slice(0, MAX_ERROR_TEXT_LENGTH) },
    });
  }

  #receiveResponse(fields: Map<string, unknown>): void {
    const id = takeId(fields);
    const call = this.#pending.get(id);
    if (call === undefined) return;
    const error = fields.get('error');
    if (error === undefined) {
      call.resolve(fields.get('result'));
      return;
    }
    if (typeof error !== 'object' || error === null) throw malformed('response', 'error is not a map');
    const { code, message } = error as { code?: unknown; message?: unknown };
    if (typeof code !== 'string' || code.length > MAX_NAME_LENGTH) throw malformed('response', 'error has no code');
    if (typeof message !== 'string' || message.length > MAX_ERROR_TEXT_LENGTH) {
      throw malformed('response', 'error has no message');
    }
    call.reject(new RpcError(code, message));
  }

  #receiveEvent(fields: Map<string, unknown>): void {
    const event = takeName(fields, 'event');
    const data = fields.get('data');
    for (const listener of this.#listeners.get(event) ?? []) listener(data);
  }

  #end(error: Error | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closeError = error;
    for (const call of [...this.#pending.values()]) call.reject(this.#closedError(call.method));
    for (const handler of this.#onClose) handler(error);
    this.#onClose.length = 0;
  }
}

function malformed(what: string, found: string): WireError {
  return new WireError('ERR_WIRE_VALUE', `Cannot accept a control ${what}: ${found}`, { message: 'control' });
}

function takeId(fields: Map<string, unknown>): number {
  const id = fields.get('id');
  if (typeof id !== 'number' || !Number.isSafeInteger(id) || id < 1) throw malformed('message', 'id is not a number');
  return id;
}

function takeName(fields: Map<string, unknown>, field: string): string {
  const name = fields.get(field);
  if (typeof name !== 'string' || name.length < 1 || name.length > MAX_NAME_LENGTH) {
    throw malformed('message', `${field} is not a name of 1..${MAX_NAME_LENGTH} characters`);
  }
  return name;
}
