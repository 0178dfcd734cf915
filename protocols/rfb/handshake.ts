import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { SecurityType } from './constants.ts';
import { MAX_REASON_BYTES } from './limits.ts';
import { decodeVersion, type ProtocolVersion, SERVER_VERSION, VERSION_BYTES } from './version.ts';

// The server's side, from the first byte to ClientInit (§7.1, §7.2, §7.3.1):
//
//   server                                   client
//   ProtocolVersion            ───────────►
//                              ◄───────────  ProtocolVersion
//   3.7+: list of types        ───────────►
//                              ◄───────────  the type it picked (must have been offered)
//   3.3:  the type             ───────────►
//   VNC authentication only:
//   challenge                  ───────────►
//                              ◄───────────  response
//   SecurityResult (not in 3.3/3.7 for None) ─►
//                              ◄───────────  ClientInit (shared flag)

const CHALLENGE_BYTES = 16;

export interface HandshakeOptions {
  /** Offered to the client, most wanted first; only {@link SecurityType.none} and `vncAuthentication` exist here */
  readonly securityTypes: readonly number[];
  /** Sixteen unpredictable bytes; needed for VNC authentication */
  readonly challenge?: () => Uint8Array;
  /** True when the response proves the password; must take constant time */
  readonly checkResponse?: (challenge: Uint8Array, response: Uint8Array) => boolean;
}

export type HandshakeState = 'version' | 'security' | 'response' | 'client-init' | 'done' | 'failed';

export interface HandshakeStep {
  readonly state: HandshakeState;
  /** To be sent now; may be empty */
  readonly send: Uint8Array;
  /** With `failed`: why; the connection is to be closed after `send` */
  readonly failure?: WireError;
  /** With `done` */
  readonly shared?: boolean;
}

const nothing = new Uint8Array(0);

/** A pure state machine: bytes in, bytes out, no socket. Anything that is not in its table ends it. */
export class ServerHandshake {
  readonly #options: HandshakeOptions;
  #state: HandshakeState = 'version';
  #version: ProtocolVersion = '3.8';
  #challenge: Uint8Array = nothing;

  constructor(options: HandshakeOptions) {
    if (options.securityTypes.length === 0) throw new RangeError('Cannot offer no security type');
    for (const type of options.securityTypes) {
      const known = type === SecurityType.none || type === SecurityType.vncAuthentication;
      if (!known) throw new RangeError(`Cannot offer security type ${type}: unknown`);
      if (type === SecurityType.vncAuthentication && !(options.challenge && options.checkResponse)) {
        throw new RangeError('Cannot offer VNC authentication without challenge and checkResponse');
      }
    }
    this.#options = options;
  }

  /** To be sent as soon as the connection stands. */
  get greeting(): Uint8Array {
    return SERVER_VERSION;
  }

  get state(): HandshakeState {
    return this.#state;
  }

  /** Undefined before the client has sent one */
  get version(): ProtocolVersion | undefined {
    return this.#state === 'version' ? undefined : this.#version;
  }

  /** Exact size of the next message from the client, in `bytes`; 0 when there is none */
  get expectedBytes(): number {
    switch (this.#state) {
      case 'version':
        return VERSION_BYTES;
      case 'security':
      case 'client-init':
        return 1;
      case 'response':
        return CHALLENGE_BYTES;
      default:
        return 0;
    }
  }

  /** One whole message from the client, of {@link expectedBytes}. */
  receive(message: Uint8Array): HandshakeStep {
    switch (this.#state) {
      case 'version':
        return this.#receiveVersion(message);
      case 'security':
        return this.#receiveChoice(message);
      case 'response':
        return this.#receiveResponse(message);
      case 'client-init': {
        const cursor = new Cursor(message, 'ClientInit');
        const shared = cursor.u8('shared-flag') !== 0; // §7.3.1: non-zero is true
        cursor.end();
        this.#state = 'done';
        return { state: 'done', send: nothing, shared };
      }
      default:
        throw new WireError('ERR_WIRE_STATE', `Cannot take a handshake message: state is ${this.#state}`);
    }
  }

  #receiveVersion(message: Uint8Array): HandshakeStep {
    try {
      this.#version = decodeVersion(message);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      // No version is agreed: the 3.7 form (no types, then a reason) is what most clients can show
      return this.#fail(error, new Writer().u8(0).bytes(reason(error.message)).finish());
    }
    if (this.#version === '3.3') {
      // §7.1.2: in 3.3 the server decides
      return this.#choose(this.#options.securityTypes[0]!, new Writer().u32(this.#options.securityTypes[0]!).finish());
    }
    this.#state = 'security';
    const types = this.#options.securityTypes;
    return { state: 'security', send: Uint8Array.from([types.length, ...types]) };
  }

  #receiveChoice(message: Uint8Array): HandshakeStep {
    const cursor = new Cursor(message, 'security-type');
    const type = cursor.u8('security-type');
    cursor.end();
    if (!this.#options.securityTypes.includes(type)) {
      // The check whose absence was RealVNC's bypass: the pick must be one of ours
      const error = new WireError('ERR_WIRE_VALUE', `Cannot use security type ${type}: it was not offered`);
      return this.#fail(error, this.#failureResult(error));
    }
    return this.#choose(type, nothing);
  }

  #choose(type: number, prefix: Uint8Array): HandshakeStep {
    if (type === SecurityType.vncAuthentication) {
      const challenge = this.#options.challenge!();
      if (challenge.length !== CHALLENGE_BYTES) throw new RangeError('Cannot use a challenge that is not 16 bytes');
      this.#challenge = challenge.slice();
      this.#state = 'response';
      return { state: 'response', send: join(prefix, this.#challenge) };
    }
    this.#state = 'client-init';
    // §7.2.1: before 3.8 no SecurityResult follows type None
    const result = this.#version === '3.8' ? new Writer().u32(0).finish() : nothing;
    return { state: 'client-init', send: join(prefix, result) };
  }

  #receiveResponse(message: Uint8Array): HandshakeStep {
    const cursor = new Cursor(message, 'VNC authentication response');
    const response = cursor.bytes(CHALLENGE_BYTES, 'response').slice();
    cursor.end();
    const challenge = this.#challenge;
    this.#challenge = nothing; // a challenge is good for one answer
    if (!this.#options.checkResponse!(challenge, response)) {
      const error = new WireError('ERR_WIRE_VALUE', 'Cannot authenticate: wrong password');
      return this.#fail(error, this.#failureResult(error));
    }
    this.#state = 'client-init';
    return { state: 'client-init', send: new Writer().u32(0).finish() };
  }

  #failureResult(error: WireError): Uint8Array {
    const writer = new Writer().u32(1);
    if (this.#version === '3.8') writer.bytes(reason(error.message)); // §7.1.3: the reason is new in 3.8
    return writer.finish();
  }

  #fail(failure: WireError, send: Uint8Array): HandshakeStep {
    this.#state = 'failed';
    return { state: 'failed', send, failure };
  }
}

function reason(text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text).subarray(0, MAX_REASON_BYTES);
  return new Writer().u32(bytes.length).bytes(bytes).finish();
}

/** For a server that is full: refuses in the form that a 3.7+ client can read, before anything is offered. */
export function encodeRefusal(text: string): Uint8Array {
  return new Writer().u8(0).bytes(reason(text)).finish();
}

function join(first: Uint8Array, second: Uint8Array): Uint8Array {
  if (first.length === 0) return second;
  const out = new Uint8Array(first.length + second.length);
  out.set(first);
  out.set(second, first.length);
  return out;
}
