import { connect, type Socket } from 'node:net';
import {
  decodeServerMessage,
  formatJson,
  type JsonValue,
  type QmpArguments,
  type QmpCommandName,
  QmpDecoder,
  type QmpReturn,
  type QmpServerMessage,
} from '../../protocols/qmp/mod.ts';

const CONNECT_TIMEOUT_MS = 5000;
/** `query-qmp-schema` of a large server is the largest thing that comes, in `bytes` */
const MAX_MESSAGE_BYTES = 16 << 20;
const MAX_PENDING = 64;

export interface QmpClientEvent {
  readonly event: string;
  readonly data: JsonValue;
}

interface Pending {
  resolve(value: JsonValue): void;
  reject(error: Error): void;
}

/** The socket does not exist, closed, or does not speak QMP. */
export class QmpConnectionError extends Error {
  override readonly name = 'QmpConnectionError';
  readonly code = 'ERR_QMP_CONNECTION';
}

/**
 * A client of a QMP server: ours, or QEMU's. Connects to a UNIX socket, negotiates, then runs commands.
 *
 *     await using client = await QmpClient.connect('/run/user/1000/caisson/vm/qmp.sock');
 *     const { status } = await client.execute('query-status');
 */
export class QmpClient implements AsyncDisposable {
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  readonly #path: string;
  readonly #decoder = new QmpDecoder({ maxMessageBytes: MAX_MESSAGE_BYTES });
  readonly #pending = new Map<number, Pending>();
  readonly #handlers: ((event: QmpClientEvent) => void)[] = [];
  readonly #greeting = Promise.withResolvers<void>();
  #nextId = 1;
  #error: Error | undefined;

  private constructor(socket: Socket, path: string) {
    this.#socket = socket;
    this.#path = path;
    this.#greeting.promise.catch(() => {}); // connect() may have given up before
    const { promise, resolve } = Promise.withResolvers<void>();
    this.closed = promise;
    socket.on('error', (error) => this.#fail(new QmpConnectionError(`Cannot talk to ${path}: ${error.message}`)));
    socket.on('close', () => {
      this.#fail(new QmpConnectionError(`Cannot talk to ${path}: the monitor has closed`));
      resolve();
    });
    socket.on('data', (chunk: Uint8Array) => this.#receive(chunk));
  }

  /** @throws QmpConnectionError */
  static async connect(path: string, options: { timeoutMs?: number } = {}): Promise<QmpClient> {
    const client = new QmpClient(connect(path), path);
    const timer = setTimeout(
      () => client.#fail(new QmpConnectionError(`Cannot talk to ${path}: no greeting came`)),
      options.timeoutMs ?? CONNECT_TIMEOUT_MS,
    );
    try {
      await client.#greeting.promise;
      await client.execute('qmp_capabilities');
      return client;
    } finally {
      clearTimeout(timer);
    }
  }

  /** @throws QmpError as the server says, QmpConnectionError when it is gone */
  async execute<N extends QmpCommandName>(
    command: N,
    ...given: Record<string, never> extends QmpArguments<N>
      ? [arguments?: QmpArguments<N>]
      : [arguments: QmpArguments<N>]
  ): Promise<QmpReturn<N>> {
    return (await this.request(command, given[0] as object | undefined)) as QmpReturn<N>;
  }

  /** Any command, also one that our schema does not have. */
  request(command: string, given?: object): Promise<JsonValue> {
    const { promise, resolve, reject } = Promise.withResolvers<JsonValue>();
    if (this.#error !== undefined) reject(this.#error);
    else if (this.#pending.size >= MAX_PENDING)
      reject(new QmpConnectionError('Cannot send more commands: too many wait'));
    else {
      const id = this.#nextId++;
      this.#pending.set(id, { resolve, reject });
      this.#socket.write(`${formatJson({ execute: command, arguments: given, id })}\r\n`);
    }
    return promise;
  }

  onEvent(handler: (event: QmpClientEvent) => void): void {
    this.#handlers.push(handler);
  }

  async close(): Promise<void> {
    this.#socket.end();
    this.#socket.destroy();
    await this.closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #receive(chunk: Uint8Array): void {
    for (const frame of this.#decoder.push(chunk)) {
      if (frame.kind === 'error') {
        this.#fail(new QmpConnectionError(`Cannot read from ${this.#path}: ${frame.text}`));
        return;
      }
      let message: QmpServerMessage;
      try {
        message = decodeServerMessage(frame.bytes);
      } catch (error) {
        this.#fail(new QmpConnectionError(`Cannot read from ${this.#path}`, { cause: error }));
        return;
      }
      this.#take(message);
    }
  }

  #take(message: QmpServerMessage): void {
    if (message.kind === 'greeting') {
      this.#greeting.resolve();
    } else if (message.kind === 'event') {
      for (const handler of this.#handlers) handler({ event: message.event, data: message.data });
    } else {
      // An error without id is about bytes that the server could not read; ours are always whole.
      const pending = typeof message.id === 'number' ? this.#pending.get(message.id) : undefined;
      if (pending === undefined) return;
      this.#pending.delete(message.id as number);
      if (message.kind === 'return') pending.resolve(message.value);
      else pending.reject(message.error);
    }
  }

  #fail(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    this.#greeting.reject(error);
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
    this.#socket.destroy();
  }
}
