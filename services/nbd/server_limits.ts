/** What one client, and all of them together, may cost. */
export interface NbdServerLimits {
  /** From connection to the end of the handshake, in `ms`; 0: no deadline */
  readonly handshakeMs: number;
  /** Requests of one session that are being worked on */
  readonly requests: number;
  /** Their data, in `bytes`; one request may always be worked on */
  readonly requestBytes: number;
  /** Replies built and not yet taken by the client, in `bytes`: above, nothing more is read from it */
  readonly replyBytes: number;
  /** A request that a client has begun must be whole after this long, in `ms`; 0: no deadline */
  readonly payloadMs: number;
  /** Data in work and payloads under way for all connections from one address, in `bytes` */
  readonly peerBytes: number;
  /** After shutdown() or DISC, work in flight gets this long, in `ms` */
  readonly drainMs: number;
  /** Connections of one listener */
  readonly connections: number;
  /** Connections of one listener that are still in the handshake */
  readonly handshakes: number;
  /** Connections of one listener from one address (TCP) */
  readonly connectionsPerAddress: number;
  /** A client that asks one thing after the other is looked out for so long before the event loop sleeps, in `ms`; 0: not at all */
  readonly pollMs: number;
}

export const DEFAULT_NBD_LIMITS: NbdServerLimits = {
  handshakeMs: 10_000,
  requests: 64,
  requestBytes: 64 << 20,
  replyBytes: 4 << 20,
  payloadMs: 60_000,
  peerBytes: 256 << 20,
  drainMs: 5_000,
  connections: 100,
  handshakes: 32,
  connectionsPerAddress: 64,
  pollMs: 0.05,
};
