import {
  decodeDisplayMessage,
  encodeInputMessage,
  type InputMessage,
  MAX_DISPLAY_PAYLOAD_BYTES,
} from '../../protocols/roles/display.ts';
import { Channel } from '../shared/channel.ts';
import type { RoleMain, Rpc } from '../shared/role.ts';
import { RpcPeer } from '../shared/rpc.ts';
import { type Asset, loadAssets } from './assets.ts';
import { Console, type ConsoleOptions, type Viewer } from './console.ts';
import { Display } from './display.ts';
import { encodePng, encodePpm } from './png.ts';
import { listenRfb, type RfbListener } from './rfb_listener.ts';
import { fields, integer, ParameterError, parseListen, parseName, text } from './role_params.ts';
import { listenWeb, type WebListener } from './web_listener.ts';

/** How long the machine may take to send a picture for a screen dump, in `ms` */
const REFRESH_TIMEOUT_MS = 5000;
const MAX_LISTENERS = 8;

export interface ConsoleRoleOptions {
  /** Shown by viewers as the title (RFB desktop name) */
  readonly name: string;
  readonly limits?: Partial<ConsoleOptions>;
}

/**
 * The console role. Links: `control` (Rpc), `display` (see protocols/roles/display.ts).
 *
 * Methods: `listen` (see {@link parseListen}) → `{ url?, host, port?, token?, id }`, `query-vnc`,
 * `query-vnc-servers`, `screendump { format: 'png' | 'ppm' }` → bytes, `set-password { password }`,
 * `set-name { name }`, `disconnect { id }`, `close { id? }`.
 * Events, with QMP's names: `VNC_CONNECTED`, `VNC_INITIALIZED`, `VNC_DISCONNECTED`.
 */
export const consoleRole: RoleMain<ConsoleRoleOptions> = async (links, options) => {
  // Everything that is read from disk is read now: the role may be locked after this
  const assets = loadAssets();
  const control = new RpcPeer(links.control, { name: 'supervisor' });
  const role = new ConsoleRole(control, links.display, assets, options);
  await role.done;
};

type Listener =
  | { readonly kind: 'web'; readonly web: WebListener }
  | { readonly kind: 'rfb'; readonly rfb: RfbListener };

class ConsoleRole {
  readonly done: Promise<void>;
  readonly #control: Rpc;
  readonly #channel: Channel;
  readonly #display: Display;
  readonly #console: Console;
  readonly #assets: ReadonlyMap<string, Asset>;
  readonly #listeners = new Map<number, Listener>();
  #nextListener = 1;
  #password: string | undefined;
  #refreshSerial = 0;
  readonly #refreshWaits = new Map<number, () => void>();

  constructor(
    control: Rpc,
    display: ConstructorParameters<typeof Channel>[0] | undefined,
    assets: ReadonlyMap<string, Asset>,
    options: ConsoleRoleOptions,
  ) {
    if (display === undefined) throw new ParameterError('Cannot run a console: there is no display link');
    this.#control = control;
    this.#assets = assets;
    this.#display = new Display(parseName(options.name));
    this.#channel = new Channel(display, { name: 'display', maxPayloadBytes: MAX_DISPLAY_PAYLOAD_BYTES });
    this.#console = new Console(
      this.#display,
      (message) => this.#sendInput(message),
      () => (this.#channel.stream.writableNeedDrain ? this.#channel.drained() : undefined),
      options.limits,
    );
    this.#console.onEvent((event, viewer) =>
      control.emit(`VNC_${event.toUpperCase()}`, { client: describe(viewer), server: { auth: authOf(viewer) } }),
    );
    this.#channel.onFrame((type, payload) => this.#onDisplay(type, payload));
    this.#channel.onClose((error) => {
      if (error !== undefined) control.emit('display-error', { message: error.message });
      this.#console.close();
    });
    this.#handleMethods();
    this.done = new Promise((resolve) => {
      control.onClose(() => {
        void this.#closeAll().finally(() => {
          this.#channel.close();
          resolve();
        });
      });
    });
  }

  #handleMethods(): void {
    const control = this.#control;
    control.handle('listen', (params) => this.#listen(params));
    control.handle('query-vnc', () => this.#query());
    control.handle('query-vnc-servers', () => [...this.#listeners].map(([id, listener]) => serverOf(id, listener)));
    control.handle('screendump', (params) => this.#screendump(params));
    control.handle('set-password', (params) => {
      const password = text(fields(params, 'set a password'), 'password', 64);
      this.#password = password === '' ? undefined : password;
    });
    control.handle('set-name', (params) => {
      this.#display.name = parseName(fields(params, 'name the desktop').get('name'));
    });
    control.handle('disconnect', (params) => {
      const id = integer(fields(params, 'disconnect'), 'id', 1, Number.MAX_SAFE_INTEGER);
      return id !== undefined && this.#console.disconnect(id);
    });
    control.handle('close', async (params) => {
      const id = integer(fields(params, 'close'), 'id', 1, Number.MAX_SAFE_INTEGER);
      if (id === undefined) await this.#closeAll();
      else await this.#closeListener(id);
    });
  }

  #sendInput(message: InputMessage): void {
    const frame = encodeInputMessage(message);
    this.#channel.send(frame.type, ...frame.parts);
  }

  /** What throws here is the machine's fault; the channel closes. */
  #onDisplay(type: number, payload: Uint8Array): void {
    const message = decodeDisplayMessage(type, payload);
    this.#display.apply(message);
    if (message.type === 'frame-end') {
      for (const [serial, done] of this.#refreshWaits) if (serial <= message.serial) done();
    }
  }

  async #listen(params: unknown) {
    const wanted = parseListen(params);
    if (this.#listeners.size >= MAX_LISTENERS) {
      throw new ParameterError(`Cannot listen: ${this.#listeners.size} listeners exist, limit is ${MAX_LISTENERS}`);
    }
    const id = this.#nextListener++;
    if (wanted.transport === 'web') {
      const web = await listenWeb(this.#console, this.#assets, wanted);
      this.#listeners.set(id, { kind: 'web', web });
      return { id, ...web.bound, url: web.url, token: web.token };
    }
    if (wanted.password !== undefined) this.#password = wanted.password;
    const rfb = await listenRfb(this.#console, {
      address: wanted.address,
      viewOnly: wanted.viewOnly,
      password: wanted.password === undefined ? undefined : () => this.#password,
    });
    this.#listeners.set(id, { kind: 'rfb', rfb });
    return { id, ...rfb.bound };
  }

  /** QMP's VncInfo. */
  #query() {
    const [first] = this.#listeners;
    return {
      enabled: first !== undefined,
      ...(first === undefined ? {} : serverOf(...first)),
      clients: this.#console.viewers.filter(({ session }) => session.state === 'open').map(describe),
    };
  }

  async #screendump(params: unknown): Promise<Uint8Array> {
    const format = text(fields(params, 'dump the screen'), 'format', 8) ?? 'png';
    if (format !== 'png' && format !== 'ppm') {
      throw new ParameterError(`Cannot dump the screen as ${format}: expected png or ppm`);
    }
    await this.#refresh();
    const { width, height, pixels } = this.#display;
    return format === 'png' ? encodePng({ width, height, pixels }) : encodePpm({ width, height, pixels });
  }

  /** Resolves when the shadow is as new as the surface; while nobody watches it is not kept up to date. */
  #refresh(): Promise<void> {
    const serial = ++this.#refreshSerial;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = setTimeout(() => {
      this.#refreshWaits.delete(serial);
      reject(new Error(`Cannot dump the screen: the machine sent no picture in ${REFRESH_TIMEOUT_MS} ms`));
    }, REFRESH_TIMEOUT_MS);
    this.#refreshWaits.set(serial, () => {
      clearTimeout(timer);
      this.#refreshWaits.delete(serial);
      resolve();
    });
    this.#sendInput({ type: 'refresh', serial });
    return promise;
  }

  async #closeListener(id: number): Promise<void> {
    const listener = this.#listeners.get(id);
    if (listener === undefined) return;
    this.#listeners.delete(id);
    await (listener.kind === 'web' ? listener.web.close() : listener.rfb.close());
  }

  async #closeAll(): Promise<void> {
    this.#console.close();
    await Promise.all([...this.#listeners.keys()].map((id) => this.#closeListener(id)));
  }
}

function serverOf(id: number, listener: Listener) {
  const { bound } = listener.kind === 'web' ? listener.web : listener.rfb;
  return {
    id,
    host: bound.host,
    service: bound.port === undefined ? '' : String(bound.port),
    family: bound.family,
    websocket: listener.kind === 'web',
  };
}

function describe(viewer: Viewer) {
  const { peer } = viewer;
  return {
    id: viewer.id,
    host: peer.address,
    service: peer.port === undefined ? '' : String(peer.port),
    family: peer.transport === 'unix' ? 'unix' : peer.address.includes(':') ? 'ipv6' : 'ipv4',
    websocket: peer.transport === 'websocket',
  };
}

function authOf(viewer: Viewer): string {
  return viewer.peer.password === undefined ? 'none' : 'vnc';
}
