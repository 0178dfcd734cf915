import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { encodeRefusal, SERVER_VERSION, SecurityType } from '../../protocols/rfb/mod.ts';
import type { InputMessage } from '../../protocols/roles/display.ts';
import type { Display } from './display.ts';
import { InputHub } from './input.ts';
import { RfbSession } from './session.ts';
import { checkVncResponse } from './vnc_auth.ts';

/**
 * What a viewer's wish to be alone means. `allow-exclusive`: it is granted, the others are disconnected;
 * `force-shared`: such a viewer is refused; `ignore`: everybody shares.
 */
export type SharePolicy = 'allow-exclusive' | 'force-shared' | 'ignore';

export interface ConsoleOptions {
  readonly share: SharePolicy;
  /** Viewers at a time, those in the handshake included */
  readonly maxViewers: number;
  /** Of those, in the handshake */
  readonly maxHandshakes: number;
  /** Of those, from one address */
  readonly maxPerAddress: number;
  readonly handshakeTimeoutMs: number;
  /** Viewers may ask the guest for another size */
  readonly allowResize: boolean;
}

export const defaultConsoleOptions: ConsoleOptions = {
  share: 'allow-exclusive',
  maxViewers: 32,
  maxHandshakes: 16,
  maxPerAddress: 32,
  handshakeTimeoutMs: 10_000,
  allowResize: true,
};

/** How a connection came here, and what its listener allows it. */
export interface Peer {
  /** For limits and logs; 'unix' for a UNIX socket */
  readonly address: string;
  readonly port: number | undefined;
  readonly transport: 'websocket' | 'tcp' | 'unix';
  readonly viewOnly: boolean;
  /** Asked for by VNC authentication; undefined: the listener has proved the viewer in another way */
  readonly password: (() => string | undefined) | undefined;
}

export interface Viewer {
  readonly id: number;
  readonly peer: Peer;
  readonly session: RfbSession;
  readonly exclusive: boolean;
}

export type ConsoleEvent = 'connected' | 'initialized' | 'disconnected';

interface Entry {
  id: number;
  peer: Peer;
  session: RfbSession;
  exclusive: boolean;
}

/** All viewers of one display: limits, share policy, input, and when the machine has to send pictures. */
export class Console {
  readonly display: Display;
  readonly #options: ConsoleOptions;
  readonly #send: (message: InputMessage) => void;
  readonly #inputBlocked: () => Promise<void> | undefined;
  readonly #hub: InputHub;
  readonly #viewers = new Map<number, Entry>();
  #nextId = 1;
  #watching = false;
  #onEvent: ((event: ConsoleEvent, viewer: Viewer, error?: Error) => void) | undefined;

  /** `send` goes to the machine; `inputBlocked` resolves when it takes more, undefined while it does. */
  constructor(
    display: Display,
    send: (message: InputMessage) => void,
    inputBlocked: () => Promise<void> | undefined,
    options: Partial<ConsoleOptions> = {},
  ) {
    this.display = display;
    this.#options = { ...defaultConsoleOptions, ...options };
    this.#send = send;
    this.#inputBlocked = inputBlocked;
    this.#hub = new InputHub(send, () => display.leds);
  }

  get viewers(): readonly Viewer[] {
    return [...this.#viewers.values()];
  }

  onEvent(handler: (event: ConsoleEvent, viewer: Viewer, error?: Error) => void): void {
    this.#onEvent = handler;
  }

  /** Takes over a connection that its listener has let in. */
  accept(stream: Duplex, peer: Peer): void {
    const full = this.#full(peer.address);
    if (full !== undefined) {
      stream.on('error', () => {}); // it is going away
      stream.write(SERVER_VERSION);
      stream.end(encodeRefusal(`Cannot connect: ${full}`));
      setTimeout(() => stream.destroy(), 1000).unref();
      return;
    }
    const input = this.#hub.attach();
    const id = this.#nextId++;
    const session = new RfbSession(stream, {
      display: this.display,
      input,
      viewOnly: peer.viewOnly,
      handshakeTimeoutMs: this.#options.handshakeTimeoutMs,
      handshake:
        peer.password === undefined
          ? { securityTypes: [SecurityType.none] }
          : {
              securityTypes: [SecurityType.vncAuthentication],
              challenge: () => randomBytes(16),
              checkResponse: (challenge, response) => checkVncResponse(peer.password!() ?? '', challenge, response),
            },
      admit: (shared) => this.#admit(id, shared),
      requestSize: this.#options.allowResize
        ? (width, height) => this.#send({ type: 'resize', width, height })
        : undefined,
      inputBlocked: this.#inputBlocked,
    });
    const entry: Entry = { id, peer, session, exclusive: false };
    this.#viewers.set(id, entry);
    session.onOpen(() => {
      this.#updateWatching();
      this.#onEvent?.('initialized', entry);
    });
    session.onClose((error) => {
      this.#viewers.delete(id);
      this.#hub.detach(input);
      this.#updateWatching();
      this.#onEvent?.('disconnected', entry, error);
    });
    this.#onEvent?.('connected', entry);
  }

  /** Disconnects one viewer; false when it is not there. */
  disconnect(id: number): boolean {
    const entry = this.#viewers.get(id);
    entry?.session.close();
    return entry !== undefined;
  }

  close(): void {
    for (const { session } of [...this.#viewers.values()]) session.close();
  }

  #full(address: string): string | undefined {
    const all = [...this.#viewers.values()];
    const { maxViewers, maxHandshakes, maxPerAddress } = this.#options;
    if (all.length >= maxViewers) return `${all.length} viewers are connected, limit is ${maxViewers}`;
    const waiting = all.filter(({ session }) => session.state === 'handshake').length;
    if (waiting >= maxHandshakes) return `${waiting} viewers are connecting, limit is ${maxHandshakes}`;
    const same = all.filter(({ peer }) => peer.address === address).length;
    if (same >= maxPerAddress) return `${same} viewers come from your address, limit is ${maxPerAddress}`;
    return undefined;
  }

  #admit(id: number, shared: boolean): string | undefined {
    const { share } = this.#options;
    const entry = this.#viewers.get(id);
    if (share === 'ignore' || entry === undefined) return undefined;
    if (share === 'force-shared') return shared ? undefined : 'this console is always shared';
    const others = [...this.#viewers.values()].filter((other) => other.id !== id && other.session.state === 'open');
    if (shared) {
      return others.some((other) => other.exclusive) ? 'another viewer has the console to itself' : undefined;
    }
    entry.exclusive = true;
    for (const other of others) other.session.close();
    return undefined;
  }

  #updateWatching(): void {
    const watching = [...this.#viewers.values()].some(({ session }) => session.state === 'open');
    if (watching === this.#watching) return;
    this.#watching = watching;
    this.#send({ type: 'watch', watching });
  }
}
