import { constants } from 'node:crypto';
import { isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import { checkServerIdentity, connect, createServer, type PeerCertificate, type TLSSocket } from 'node:tls';
import { type PskCredentials, type TlsCredentials, TlsError, type X509Credentials } from './tls_credentials.ts';

// The only place that touches node:tls. Both ends upgrade a stream that has carried other bytes before (NBD
// STARTTLS, VeNCrypt, migration). The traps that it is here for:
//
// - A bare `new TLSSocket(raw, { isServer: true, rejectUnauthorized: true })` rejects nobody: only a tls.Server looks
//   at what the verification found. So the server end is always a tls.Server, given the stream by hand.
// - TLS 1.3 counts a pre-shared key as a resumed session, and node:tls does not check names on resumed sessions. So
//   the client end looks again at what it got, by itself.
// - Bytes that wait in the stream would be taken for TLS: the caller makes sure that none of its plaintext is left.

const DEFAULT_HANDSHAKE_MS = 10_000;
/** AES-128 first: with AES in the CPU it is three times as fast as the ChaCha20 that GnuTLS ends settle on */
const CERTIFICATE_CIPHERS_13 = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';
const CERTIFICATE_CIPHERS_12 =
  'ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:' +
  'ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305';
/** An external key is bound to SHA-256, and so must the cipher be; forward secrecy always */
const PSK_CIPHERS_13 = 'TLS_AES_128_GCM_SHA256:PSK';
const PSK_CIPHERS_12 = 'TLS_AES_128_GCM_SHA256:ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES128-GCM-SHA256';

/** Who the other side has proven to be. */
export type TlsIdentity =
  | {
      readonly kind: 'x509';
      /** Distinguished name as RFC 4514 writes it, most specific part first: `CN=alice,O=Example` */
      readonly subject: string;
      /** Subject alternative names, such as `DNS:host.example` */
      readonly altNames: readonly string[];
      /** SHA-256 of the certificate, hexadecimal with colons */
      readonly fingerprint: string;
    }
  | { readonly kind: 'psk'; readonly user: string }
  /** A client that no certificate was asked of */
  | { readonly kind: 'anonymous' };

export interface SecureStream {
  readonly stream: TLSSocket;
  readonly peer: TlsIdentity;
}

export interface TlsVersionOption {
  /** Oldest version that is spoken (default TLSv1.3) */
  readonly minVersion?: 'TLSv1.2' | 'TLSv1.3';
  /** Newest version that is spoken (default TLSv1.3) */
  readonly maxVersion?: 'TLSv1.2' | 'TLSv1.3';
}

export interface TlsServerOptions extends TlsVersionOption {
  /** False: clients need no certificate (default true) */
  readonly verifyPeer?: boolean;
  /** The last word on who may come in, after the certificate or key has been verified */
  readonly authorize?: (peer: TlsIdentity) => boolean | Promise<boolean>;
  /** For the whole handshake, in `ms` (default 10 000) */
  readonly handshakeMs?: number;
}

/** Turns accepted streams into TLS ones. */
export class TlsServer {
  readonly #credentials: TlsCredentials;
  readonly #options: TlsServerOptions;

  /** @throws TlsError when the credentials cannot serve */
  constructor(credentials: TlsCredentials, options: TlsServerOptions = {}) {
    this.#credentials = credentials;
    this.#options = options;
    if (credentials.kind === 'x509' && credentials.own === undefined) {
      throw new TlsError('ERR_TLS_CREDENTIALS', 'Cannot serve TLS: the server has no certificate');
    }
    // A key that does not fit its certificate is told at start, not to the first client.
    this.#newServer(() => {}).close();
  }

  /**
   * The server's end of a handshake over `raw`, which nobody else may read or write from now on.
   * @throws TlsError when the client is wrong or late; `raw` is destroyed then
   */
  upgrade(raw: Duplex, options: { readonly signal?: AbortSignal } = {}): Promise<SecureStream> {
    const { promise, resolve, reject } = Promise.withResolvers<SecureStream>();
    const { signal } = options;
    let user: string | undefined;
    // One tls.Server for each stream: its events are then about this stream, with no guessing.
    const server = this.#newServer((identity) => {
      user = identity;
    });
    let over = false;
    const fail = (error: TlsError | Error): void => {
      if (over) return;
      over = true;
      finish();
      raw.destroy();
      reject(error);
    };
    const onAbort = (): void => fail(signal!.reason as Error);
    // Behind the server's own event, which knows why.
    const onClose = (): void => {
      setImmediate(() => fail(new TlsError('ERR_TLS_PEER', 'Cannot finish the TLS handshake: client left')));
    };
    // Half a close in the middle of a handshake is a whole one; afterwards it is up to the protocol.
    const halfOpen = raw.allowHalfOpen;
    raw.allowHalfOpen = false;
    const finish = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      raw.off('close', onClose);
    };
    const timer = setTimeout(() => {
      fail(new TlsError('ERR_TLS_TIMEOUT', 'Cannot finish the TLS handshake: client is too slow'));
    }, this.#options.handshakeMs ?? DEFAULT_HANDSHAKE_MS);
    raw.on('error', () => {}); // its close is what counts
    raw.once('close', onClose);
    signal?.addEventListener('abort', onAbort, { once: true });
    server.on('tlsClientError', (cause, stream) => {
      const reason: unknown = stream.authorizationError ?? (cause as NodeJS.ErrnoException).code ?? cause.message;
      stream.on('error', () => {});
      fail(new TlsError('ERR_TLS_PEER', `Cannot accept the TLS client: ${String(reason)}`, { cause }));
    });
    server.on('secureConnection', async (stream) => {
      stream.on('error', () => {}); // until the owner listens; stream.errored keeps it
      try {
        const peer = this.#identify(stream, user);
        if ((await (this.#options.authorize?.(peer) ?? true)) !== true) {
          throw new TlsError('ERR_TLS_UNAUTHORIZED', `Cannot accept the TLS client: ${describe(peer)} is not allowed`);
        }
        if (over) return;
        over = true;
        finish();
        stream.allowHalfOpen = halfOpen;
        resolve({ stream, peer });
      } catch (error) {
        stream.destroy();
        fail(error instanceof Error ? error : new Error(String(error)));
      }
    });
    if (signal?.aborted) onAbort();
    else if (raw.destroyed) onClose();
    else server.emit('connection', raw);
    return promise;
  }

  #identify(stream: TLSSocket, user: string | undefined): TlsIdentity {
    if (this.#credentials.kind === 'psk') {
      // The callback named the user, and only the holder of that user's key gets here.
      if (user === undefined) throw new TlsError('ERR_TLS_PEER', 'Cannot accept the TLS client: it used no key');
      return { kind: 'psk', user };
    }
    if (this.#options.verifyPeer === false) return { kind: 'anonymous' };
    if (!stream.authorized) throw new TlsError('ERR_TLS_PEER', 'Cannot accept the TLS client: not verified');
    return certificateIdentity(stream);
  }

  #newServer(onUser: (identity: string) => void) {
    const { minVersion = 'TLSv1.3', maxVersion = 'TLSv1.3' } = this.#options;
    const common = {
      minVersion,
      maxVersion,
      honorCipherOrder: true,
      // Sessions are not resumed: every connection proves who it is again.
      secureOptions: constants.SSL_OP_NO_RENEGOTIATION | constants.SSL_OP_NO_TICKET,
      // The deadline above comes first.
      handshakeTimeout: (this.#options.handshakeMs ?? DEFAULT_HANDSHAKE_MS) + 5_000,
    };
    const credentials = this.#credentials;
    try {
      if (credentials.kind === 'psk') {
        return createServer({
          ...common,
          ciphers: minVersion === 'TLSv1.3' ? PSK_CIPHERS_13 : PSK_CIPHERS_12,
          dhparam: 'auto',
          pskCallback: (_stream, identity) => {
            const key = credentials.keys.get(identity);
            if (key === undefined) return null;
            onUser(identity);
            return key.export();
          },
        });
      }
      return createServer({
        ...common,
        ...x509Options(credentials, minVersion),
        requestCert: this.#options.verifyPeer !== false,
        rejectUnauthorized: true,
      });
    } catch (cause) {
      throw unusable(cause);
    }
  }
}

export interface TlsClientOptions extends TlsVersionOption {
  /** PSK: which of the keys to use (default: the only one) */
  readonly user?: string;
  /** For the whole handshake, in `ms` (default 10 000) */
  readonly handshakeMs?: number;
}

/** Turns connected streams into TLS ones. The server's certificate and its name are always checked. */
export class TlsClient {
  readonly #credentials: TlsCredentials;
  readonly #options: TlsClientOptions;
  readonly #psk: { readonly identity: string; readonly key: Buffer } | undefined;

  /** @throws TlsError with code ERR_TLS_CREDENTIALS when no key fits */
  constructor(credentials: TlsCredentials, options: TlsClientOptions = {}) {
    this.#credentials = credentials;
    this.#options = options;
    this.#psk = credentials.kind === 'psk' ? chooseKey(credentials, options.user) : undefined;
  }

  /**
   * The client's end of a handshake over `raw`, which nobody else may read or write from now on. `serverName` is what
   * the user called the server: a DNS name or an address that its certificate must carry; keys carry no name.
   * @throws TlsError when the server is wrong or late; `raw` is destroyed then
   */
  upgrade(raw: Duplex, options: { readonly serverName: string; readonly signal?: AbortSignal }): Promise<SecureStream> {
    const { serverName, signal } = options;
    const { promise, resolve, reject } = Promise.withResolvers<SecureStream>();
    let stream: TLSSocket;
    try {
      stream = this.#connect(raw, serverName);
    } catch (cause) {
      raw.destroy();
      reject(unusable(cause));
      return promise;
    }
    let over = false;
    const settle = (): boolean => {
      if (over) return false;
      over = true;
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
      stream.off('close', onClose);
      raw.off('close', onClose);
      return true;
    };
    const fail = (error: Error): void => {
      if (!settle()) return;
      stream.destroy();
      raw.destroy();
      reject(error);
    };
    const onAbort = (): void => fail(signal!.reason as Error);
    const onClose = (): void => {
      setImmediate(() => fail(new TlsError('ERR_TLS_PEER', 'Cannot finish the TLS handshake: server left')));
    };
    const timer = setTimeout(() => {
      fail(new TlsError('ERR_TLS_TIMEOUT', 'Cannot finish the TLS handshake: server is too slow'));
    }, this.#options.handshakeMs ?? DEFAULT_HANDSHAKE_MS);
    raw.on('error', () => {});
    stream.on('error', (cause: NodeJS.ErrnoException) => {
      const reason = cause.code ?? cause.message;
      fail(new TlsError('ERR_TLS_PEER', `Cannot trust the TLS server ${serverName}: ${reason}`, { cause }));
    });
    stream.once('close', onClose);
    raw.once('close', onClose);
    signal?.addEventListener('abort', onAbort, { once: true });
    stream.once('secureConnect', () => {
      try {
        const peer = this.#identify(stream, serverName);
        if (settle()) resolve({ stream, peer });
      } catch (error) {
        fail(error as Error);
      }
    });
    if (signal?.aborted) onAbort();
    return promise;
  }

  #identify(stream: TLSSocket, serverName: string): TlsIdentity {
    if (!stream.authorized) throw new TlsError('ERR_TLS_PEER', `Cannot trust the TLS server ${serverName}`);
    if (this.#psk !== undefined) {
      // Whoever finished this handshake without a certificate has the key.
      if (Object.keys(stream.getPeerCertificate()).length > 0) {
        throw new TlsError('ERR_TLS_PEER', 'Cannot trust the TLS server: it has a certificate, expected the key');
      }
      return { kind: 'psk', user: this.#psk.identity };
    }
    // We never offer a session, so that a resumed one, whose name nobody has checked, must not be.
    if (stream.isSessionReused())
      throw new TlsError('ERR_TLS_PEER', 'Cannot trust the TLS server: session was resumed');
    const misnamed = checkServerIdentity(serverName, stream.getPeerCertificate());
    if (misnamed !== undefined) {
      throw new TlsError('ERR_TLS_PEER', `Cannot trust the TLS server ${serverName}: ${misnamed.message}`);
    }
    return certificateIdentity(stream);
  }

  #connect(raw: Duplex, serverName: string): TLSSocket {
    const { minVersion = 'TLSv1.3', maxVersion = 'TLSv1.3' } = this.#options;
    const credentials = this.#credentials;
    const common = { socket: raw, minVersion, maxVersion, rejectUnauthorized: true };
    if (credentials.kind === 'psk') {
      const { identity, key } = this.#psk!;
      return connect({
        ...common,
        ciphers: minVersion === 'TLSv1.3' ? PSK_CIPHERS_13 : PSK_CIPHERS_12,
        // No authority is trusted: a certificate instead of the key is refused.
        ca: [],
        pskCallback: () => ({ psk: key, identity }),
        checkServerIdentity: (_host: string, certificate: PeerCertificate) =>
          Object.keys(certificate ?? {}).length === 0 ? undefined : new Error('certificate instead of the key'),
      });
    }
    return connect({
      ...common,
      ...x509Options(credentials, minVersion),
      // RFC 6066 §3: the server name is a DNS name, never an address.
      ...(isIP(serverName) === 0 ? { servername: serverName } : {}),
      checkServerIdentity: (_host: string, certificate: PeerCertificate) =>
        checkServerIdentity(serverName, certificate),
    });
  }
}

function x509Options(credentials: X509Credentials, minVersion: 'TLSv1.2' | 'TLSv1.3') {
  const { ca, own, crl } = credentials;
  return {
    ca,
    ...(own === undefined ? {} : { cert: own.certificate, key: own.key }),
    ...(crl === undefined ? {} : { crl }),
    ciphers: minVersion === 'TLSv1.3' ? CERTIFICATE_CIPHERS_13 : `${CERTIFICATE_CIPHERS_13}:${CERTIFICATE_CIPHERS_12}`,
  };
}

function chooseKey(credentials: PskCredentials, user: string | undefined): { identity: string; key: Buffer } {
  const identity = user ?? (credentials.keys.size === 1 ? credentials.keys.keys().next().value : undefined);
  if (identity === undefined) {
    throw new TlsError('ERR_TLS_CREDENTIALS', 'Cannot use TLS keys: there are several, and no user is given');
  }
  const key = credentials.keys.get(identity);
  if (key === undefined) {
    throw new TlsError('ERR_TLS_CREDENTIALS', `Cannot use TLS keys: there is none for ${JSON.stringify(identity)}`);
  }
  return { identity, key: key.export() };
}

function certificateIdentity(stream: TLSSocket): TlsIdentity {
  const certificate = stream.getPeerX509Certificate();
  if (certificate === undefined) throw new TlsError('ERR_TLS_PEER', 'Cannot identify the TLS peer: no certificate');
  // One attribute a line, in the certificate's order; values are escaped, line breaks among them.
  const subject = certificate.subject?.split('\n').reverse().join(',') ?? '';
  // A name that had to be quoted could pretend to be several: such certificates have no alternative names for us.
  const names = certificate.subjectAltName ?? '';
  const altNames = names === '' || names.includes('"') ? [] : names.split(', ');
  return { kind: 'x509', subject, altNames, fingerprint: certificate.fingerprint256 };
}

function describe(peer: TlsIdentity): string {
  if (peer.kind === 'x509') return JSON.stringify(peer.subject);
  return peer.kind === 'psk' ? `user ${JSON.stringify(peer.user)}` : 'an anonymous client';
}

function unusable(cause: unknown): TlsError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new TlsError('ERR_TLS_CREDENTIALS', `Cannot use TLS credentials: ${why}`, { cause });
}
