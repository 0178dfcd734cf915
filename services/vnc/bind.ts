import type { AddressInfo, Server } from 'node:net';
import { listenOnPath } from '../shared/mod.ts';

/** Where to listen: an address, a UNIX socket, or a listening descriptor that was passed to this process. */
export type BindAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'fd'; readonly fd: number };

export interface BoundAddress {
  /** Address, or path of a UNIX socket */
  readonly host: string;
  /** Undefined for a UNIX socket */
  readonly port: number | undefined;
  readonly family: 'ipv4' | 'ipv6' | 'unix';
}

/** @throws the system's error when the address cannot be used */
export async function bind(server: Server, address: BindAddress): Promise<BoundAddress> {
  if (address.kind === 'unix') await listenOnPath(server, address.path);
  else await listen(server, address);
  server.on('error', () => {}); // accept failing (too many descriptors) must not end the role
  const bound = server.address();
  if (typeof bound === 'string' || bound === null) {
    return { host: typeof bound === 'string' ? bound : '', port: undefined, family: 'unix' };
  }
  const { address: host, port, family } = bound as AddressInfo;
  return { host, port, family: family === 'IPv6' ? 'ipv6' : 'ipv4' };
}

function listen(server: Server, address: Exclude<BindAddress, { kind: 'unix' }>): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    const done = () => {
      server.off('error', reject);
      resolve();
    };
    if (address.kind === 'tcp') server.listen(address.port, address.host, done);
    else server.listen({ fd: address.fd }, done);
  });
}
