import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';

// How a browser proves that it may see the console:
//
//   1. The URL that is printed at start carries a token of 256 random bits: http://127.0.0.1:PORT/?token=…
//   2. The page's answer sets a cookie with another secret (HttpOnly, SameSite=Strict, named after the port, since
//      browsers do not keep ports of one host apart), and the page takes the token out of the address bar.
//   3. The page's WebSocket, now and after each reconnect or reload, is let in by the cookie, and only with an
//      Origin that equals its Host.
//   A program without cookies gives the token in the WebSocket's own URL.
//
// The token stays good as long as the listener lives, so the same URL works in a second browser; with `oneTime` it
// is spent by the first page that uses it, and only that browser can come back. Host names are on an allow-list:
// a page on another name that resolves to this address (DNS rebinding) never gets an answer.

const SECRET_BYTES = 32;

export interface AccessOptions {
  /** Names that may stand in Host, without port; loopback names are always in */
  readonly allowedHosts: readonly string[];
  readonly oneTime: boolean;
}

export type Verdict = { readonly allowed: true } | { readonly allowed: false; readonly reason: string };

const allowed: Verdict = { allowed: true };
const loopbackNames = ['localhost', '127.0.0.1', '[::1]'];

export class Access {
  readonly token: string = randomBytes(SECRET_BYTES).toString('base64url');
  readonly #cookie: string = randomBytes(SECRET_BYTES).toString('base64url');
  readonly #hosts: ReadonlySet<string>;
  readonly #oneTime: boolean;
  #spent = false;
  #cookieName = 'caisson-console';

  constructor(options: AccessOptions) {
    this.#hosts = new Set([...loopbackNames, ...options.allowedHosts.map((host) => host.toLowerCase())]);
    this.#oneTime = options.oneTime;
  }

  /** Once the port is known. */
  setPort(port: number): void {
    this.#cookieName = `caisson-console-${port}`;
  }

  /** Every request, before anything else. */
  checkHost(request: IncomingMessage): Verdict {
    const host = request.headers.host;
    if (host === undefined) return refuse('no Host');
    const name = hostName(host);
    return name !== undefined && this.#hosts.has(name) ? allowed : refuse('Host is not on the list');
  }

  /** The page. Gives the Set-Cookie header when the token was what let it in. */
  checkPage(request: IncomingMessage, query: URLSearchParams): Verdict & { readonly setCookie?: string } {
    if (this.#hasCookie(request)) return allowed;
    if (!this.#takesToken(query.get('token'))) return refuse('no valid token');
    if (this.#oneTime) this.#spent = true;
    return { allowed: true, setCookie: `${this.#cookieName}=${this.#cookie}; HttpOnly; SameSite=Strict; Path=/` };
  }

  /** The WebSocket. */
  checkUpgrade(request: IncomingMessage, query: URLSearchParams): Verdict {
    const { origin, host } = request.headers;
    if (origin !== undefined && !isSameOrigin(origin, host)) return refuse('Origin is another site');
    if (origin !== undefined && this.#hasCookie(request)) return allowed;
    if (this.#takesToken(query.get('token'))) {
      if (this.#oneTime) this.#spent = true;
      return allowed;
    }
    return refuse('no valid token or session');
  }

  #takesToken(given: string | null): boolean {
    // Compared first, so that a spent token takes as long as a wrong one
    return given !== null && equalSecrets(given, this.token) && !this.#spent;
  }

  #hasCookie(request: IncomingMessage): boolean {
    const prefix = `${this.#cookieName}=`;
    let found = false;
    for (const pair of (request.headers.cookie ?? '').split(';', 64)) {
      const text = pair.trim();
      if (text.startsWith(prefix) && equalSecrets(text.slice(prefix.length), this.#cookie)) found = true;
    }
    return found;
  }
}

/** True for an address that only this host can reach. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  return isIP(host) === 4 && host.startsWith('127.');
}

function refuse(reason: string): Verdict {
  return { allowed: false, reason };
}

/** Digests have one length, so the comparison says nothing about the secret's. */
function equalSecrets(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}

/** Host without port, lower case; undefined when it is not one. */
function hostName(host: string): string | undefined {
  const match = /^(\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(?::\d{1,5})?$/i.exec(host);
  return match?.[1]?.toLowerCase();
}

function isSameOrigin(origin: string, host: string | undefined): boolean {
  const match = /^https?:\/\/([^/]+)$/i.exec(origin);
  return host !== undefined && match?.[1]?.toLowerCase() === host.toLowerCase();
}
