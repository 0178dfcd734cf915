import type { Duplex } from 'node:stream';

/**
 * A role never knows which way it runs. Its entry function gets its links: byte streams that the supervisor made,
 * inherited socketpair ends in process mode, in-process pairs in embedded mode. `control` is always there and
 * carries {@link RpcPeer} frames; the others are named by the role.
 */
export interface RoleLinks {
  readonly control: Duplex;
  readonly [name: string]: Duplex;
}

/** Runs until its control link closes. Options were made by the supervisor, as JSON. */
export type RoleMain<Options> = (links: RoleLinks, options: Options) => Promise<void>;

/** Requests and events between the supervisor and a role. Params and results are plain data; check their shape. */
export interface Rpc {
  /** @throws Error with the other side's `code` and message */
  call(method: string, params?: unknown, options?: { signal?: AbortSignal; timeoutMs?: number }): Promise<unknown>;
  handle(method: string, handler: (params: unknown) => unknown | Promise<unknown>): void;
  emit(event: string, data?: unknown): void;
  on(event: string, handler: (data: unknown) => void): void;
  onClose(handler: (error: Error | undefined) => void): void;
  close(): void;
}
