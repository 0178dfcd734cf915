import { type AgreedExport, BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH } from '../../../protocols/nbd/mod.ts';
import { NbdClient, NbdImage } from '../../../services/nbd/mod.ts';
import { readTlsCredentials, TlsClient } from '../../../services/shared/mod.ts';
import { parseNbdNode, parseTlsObject, type TlsObject } from '../../block_devices.ts';
import { KeyValues } from '../../key_value.ts';
import { isSecret } from '../../secrets.ts';
import { UsageError } from '../../usage_error.ts';
import type { Given } from './grammar.ts';

/** What `driver=nbd` says beside the server and the export */
interface NbdExtras {
  readonly tls?: { readonly credentials: string; readonly user?: string; readonly hostname?: string };
  /** QEMU's x-dirty-bitmap: this context's flags are shown as if they were those of base:allocation */
  readonly context?: string;
}

const extrasBy = new WeakMap<Given, Map<string, NbdExtras>>();

/**
 * Opens an export, `nbd://…`, `nbd+unix://…` or `nbd:unix:PATH`, as a raw disk, over our own client with its limits; the name is the user's, never an image's. What a
 * URI names, certificates and keys, is read.
 *
 * @throws WireError, TlsError, ImageError where it is read-only and is to be written, errors of connect(2)
 */
export async function openNbd(given: Given, name: string, readOnly: boolean): Promise<NbdImage> {
  const { tls, context } = extrasBy.get(given)?.get(name) ?? {};
  const contexts = [context ?? BASE_ALLOCATION, ...(context === undefined ? [QEMU_ALLOCATION_DEPTH] : [])];
  const client = await NbdClient.connect(uriOf(name), {
    uriFiles: true,
    contexts,
    ...(tls === undefined
      ? {}
      : {
          tls: {
            client: new TlsClient(
              readTlsCredentials(tls.credentials, 'client'),
              tls.user === undefined ? {} : { user: tls.user },
            ),
            mode: 'require',
            ...(tls.hostname === undefined ? {} : { serverName: tls.hostname }),
          },
        }),
  });
  if (context !== undefined && !has(client.export, context)) {
    client.destroy();
    throw new Error(`Cannot show ${context} of ${name}: the server does not have it`);
  }
  return new NbdImage(client, { readOnly, ...(context === undefined ? {} : { statusContext: context }) });
}

function has({ contexts }: AgreedExport, name: string): boolean {
  return contexts.some((context) => context.name === name);
}

/** Whether QEMU's words for an image are about an export. */
export function isNbdWords(words: ReadonlyMap<string, string>): boolean {
  return words.get('driver') === 'nbd' || words.get('file.driver') === 'nbd';
}

/** `driver=nbd,server.type=unix,server.path=PATH,export=NAME,tls-creds=ID`, also behind `file.`: gives the name to use. */
export function nameOfNbdWords(given: Given, words: ReadonlyMap<string, string>): string {
  const prefix = words.get('driver') === 'nbd' ? '' : 'file.';
  const outer = words.get('driver');
  if (prefix !== '' && outer !== undefined && outer !== 'raw') {
    throw new UsageError(`Cannot use --image-opts with driver=${outer} over an NBD export: expected raw`);
  }
  const text = [...words]
    .filter(([key]) => prefix === '' || key !== 'driver')
    .map(([key, value]) => `${key.startsWith(prefix) ? key.slice(prefix.length) : key}=${value.replaceAll(',', ',,')}`)
    .join(',');
  const keys = new KeyValues('--image-opts', text);
  keys.take('driver');
  const context = keys.take('x-dirty-bitmap');
  const node = parseNbdNode(keys);
  keys.end();
  const object = given
    .all('object')
    .filter((given) => !isSecret(given))
    .map(parseTlsObject)
    .find(({ id }) => id === node.tlsCreds);
  if (node.tlsCreds !== undefined && object === undefined) {
    throw new UsageError(`Cannot use tls-creds=${node.tlsCreds}: no --object has this id`);
  }
  const known = extrasBy.get(given) ?? new Map<string, NbdExtras>();
  extrasBy.set(given, known);
  known.set(node.uri, {
    ...(context === undefined ? {} : { context }),
    ...(object === undefined ? {} : { tls: tlsOf(object, node.tlsHostname) }),
  });
  return node.uri;
}

function tlsOf(object: TlsObject, hostname: string | undefined): NonNullable<NbdExtras['tls']> {
  return {
    credentials: object.path,
    ...(object.user === undefined ? {} : { user: object.user }),
    ...(hostname === undefined ? {} : { hostname }),
  };
}

/** QEMU's older names, `nbd:HOST:PORT` and `nbd:unix:PATH`, both with `:exportname=NAME`, as URIs. */
function uriOf(name: string): string {
  const old = /^nbd:(?:unix:(?<path>[^:]+)|(?<host>[^:/]+):(?<port>\d+))(?::exportname=(?<name>.*))?$/s.exec(name);
  if (old?.groups === undefined) return name;
  const { path, host, port, name: exportName = '' } = old.groups as Record<string, string | undefined>;
  return path === undefined
    ? `nbd://${host}:${port}/${encodeURIComponent(exportName)}`
    : `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(path)}`;
}
