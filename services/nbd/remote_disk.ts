import process from 'node:process';
import { readTlsCredentials, TlsClient } from '../shared/mod.ts';
import type { NbdClientTls } from './client_connection.ts';
import { NbdImage } from './nbd_image.ts';
import { type NbdConnectionEvent, NbdReconnectingClient } from './reconnecting_client.ts';
import type { DiskRoleNbd } from './role.ts';

const DEFAULT_RECONNECT_DELAY_MS = 60_000;

/**
 * A guest's disk on another server. What happens to the connection is told on standard error, which the supervisor
 * passes on.
 * @throws as NbdReconnectingClient.connect(); TlsError where the credentials are wrong
 */
export async function openRemoteDisk(
  id: string,
  nbd: DiskRoleNbd,
  options: { readonly readOnly: boolean; readonly inactive: boolean },
): Promise<NbdImage> {
  const { tls } = nbd;
  const disk = await NbdReconnectingClient.connect(nbd.uri, {
    // The user of this machine named the URI, and the files in it.
    uriFiles: true,
    reconnectDelayMs: nbd.reconnectDelayMs ?? DEFAULT_RECONNECT_DELAY_MS,
    retryOpenMs: nbd.openTimeoutMs ?? 0,
    connections: nbd.connections ?? 1,
    onEvent: (event) => report(id, event),
    ...(tls === undefined ? {} : { tls: clientTls(tls) }),
  });
  try {
    return new NbdImage(disk, options);
  } catch (error) {
    await disk.close();
    throw error;
  }
}

function clientTls(tls: NonNullable<DiskRoleNbd['tls']>): NbdClientTls {
  const client = new TlsClient(
    readTlsCredentials(tls.credentials, 'client'),
    tls.user === undefined ? {} : { user: tls.user },
  );
  return { client, mode: 'require', ...(tls.hostname === undefined ? {} : { serverName: tls.hostname }) };
}

function report(id: string, event: NbdConnectionEvent): void {
  // A server's words may be in the reason: the supervisor takes out what a terminal would act on.
  if (event.kind === 'lost') process.stderr.write(`Disk ${id}: NBD server is gone: ${event.reason}\n`);
  else if (event.kind === 'back') {
    process.stderr.write(`Disk ${id}: NBD server is back; ${event.replayed} changes were sent again\n`);
  }
}
