import type { NbdErrorName } from '../../protocols/nbd/mod.ts';

/** A request that the server refused or that could not be finished. */
export class NbdError extends Error {
  override readonly name = 'NbdError';
  readonly code: NbdErrorName;
  /** The connection is to blame, not the server's answer: the request may be sent again over another one */
  readonly disconnected: boolean;
  constructor(code: NbdErrorName, text: string, options?: ErrorOptions & { readonly disconnected?: boolean }) {
    super(text, options);
    this.code = code;
    this.disconnected = options?.disconnected ?? false;
  }
}

/** What a broken connection means for the requests that were under way on it. */
export function asNbdError(error: Error): NbdError {
  if (error instanceof NbdError) return error;
  return new NbdError('EIO', `Cannot finish an NBD request: ${error.message}`, { cause: error, disconnected: true });
}
