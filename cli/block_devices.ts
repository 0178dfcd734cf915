import { resolve } from 'node:path';
import { formatNbdUri, type NbdUri, parseNbdUri } from '../protocols/nbd/uri.ts';
import type { NbdSource } from '../services/supervisor/mod.ts';
import { KeyValues } from './key_value.ts';
import { UsageError } from './usage_error.ts';

/** Requests of a guest wait this long for an NBD server that is gone, in `s`, unless reconnect-delay= says otherwise */
const DEFAULT_RECONNECT_DELAY_S = 60;
const MAX_SECONDS = 86_400;
const MAX_CONNECTIONS = 16;

/** An NBD export as it was named; credentials still by the id of their -object. */
export interface NbdWords {
  readonly uri: string;
  readonly tlsCreds: string | undefined;
  readonly tlsHostname: string | undefined;
  readonly reconnectDelayMs: number;
  readonly openTimeoutMs: number | undefined;
  readonly connections: number | undefined;
}

export function isNbdUri(text: string): boolean {
  return /^nbds?(?:\+[a-z]+)?:/i.test(text);
}

/** The words that an NBD export may have beside its URI; `prefix` where QEMU nests them. */
export function parseNbdWords(keys: KeyValues, uri: string, prefix = ''): NbdWords {
  const take = (key: string): string | undefined => keys.take(`${prefix}${key}`) ?? keys.take(key);
  const seconds = (key: string): number | undefined => {
    const text = take(key);
    return text === undefined ? undefined : number(key, text, MAX_SECONDS) * 1000;
  };
  checkUri(uri);
  const connections = take('connections');
  return {
    uri,
    tlsCreds: take('tls-creds'),
    tlsHostname: take('tls-hostname'),
    reconnectDelayMs: seconds('reconnect-delay') ?? DEFAULT_RECONNECT_DELAY_S * 1000,
    openTimeoutMs: seconds('open-timeout'),
    connections: connections === undefined ? undefined : number('connections', connections, MAX_CONNECTIONS),
  };
}

/** `-blockdev driver=nbd,…`: the server and the export. */
export function parseNbdNode(keys: KeyValues): NbdWords {
  return parseNbdWords(keys, serverUri(keys));
}

/** `server.type=inet,server.host=…,server.port=…` or `server.type=unix,server.path=…`, and `export=NAME` */
function serverUri(keys: KeyValues): string {
  const type = keys.require('server.type');
  const exportName = keys.take('export') ?? '';
  if (type === 'unix') {
    return formatNbdUri({ address: { type, path: resolve(keys.require('server.path')) }, exportName });
  }
  if (type === 'vsock') throw new UsageError('Cannot use -blockdev with server.type=vsock: Node has no vsock sockets');
  if (type !== 'inet') throw new UsageError(`Cannot use -blockdev with server.type=${type}: expected inet or unix`);
  const port = number('server.port', keys.require('server.port'), 65_535);
  return formatNbdUri({ address: { type, host: keys.require('server.host'), port }, exportName });
}

function checkUri(text: string): void {
  let uri: NbdUri;
  try {
    uri = parseNbdUri(text);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  if (uri.address.type === 'vsock') throw new UsageError(`Cannot connect to ${text}: Node has no vsock sockets`);
}

/** Credentials for TLS of a client, by the id that drives name. */
export interface TlsObject {
  readonly id: string;
  /** Folder with QEMU's file names, or with keys.psk */
  readonly path: string;
  readonly user: string | undefined;
}

/** `-object tls-creds-x509|tls-creds-psk,id=ID,dir=FOLDER,endpoint=client` */
export function parseTlsObject(value: string): TlsObject {
  const keys = new KeyValues('-object', value, 'qom-type');
  const type = keys.oneOf('qom-type', ['tls-creds-x509', 'tls-creds-psk'] as const, 'tls-creds-x509');
  const object = { id: keys.require('id'), path: resolve(keys.require('dir')), user: keys.take('username') };
  if (keys.take('endpoint') !== 'client') {
    throw new UsageError(`Cannot use -object ${type} ${object.id}: expected endpoint=client`);
  }
  // Peers are always verified.
  if (!keys.flag('verify-peer', true)) throw new UsageError(`Cannot use -object ${type} with verify-peer=off`);
  keys.end();
  return object;
}

/** With its credentials found. @throws UsageError where no -object has the id */
export function nbdSource(words: NbdWords, objects: readonly TlsObject[]): NbdSource {
  const { uri, tlsCreds, tlsHostname, reconnectDelayMs, openTimeoutMs, connections } = words;
  const object = objects.find(({ id }) => id === tlsCreds);
  if (tlsCreds !== undefined && object === undefined) {
    throw new UsageError(`Cannot use tls-creds=${tlsCreds}: no -object has this id`);
  }
  if (tlsHostname !== undefined && object === undefined) {
    throw new UsageError(`Cannot use tls-hostname=${tlsHostname}: it needs tls-creds=`);
  }
  return {
    uri,
    reconnectDelayMs,
    ...(openTimeoutMs === undefined ? {} : { openTimeoutMs }),
    ...(connections === undefined ? {} : { connections }),
    ...(object === undefined
      ? {}
      : {
          tls: {
            credentials: object.path,
            ...(object.user === undefined ? {} : { user: object.user }),
            ...(tlsHostname === undefined ? {} : { hostname: tlsHostname }),
          },
        }),
  };
}

/** `{"server":{"type":"unix"}}` as `server.type=unix` */
export function flattenJson(json: string): string {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (cause) {
    throw new UsageError(`Cannot read -blockdev ${json}: ${(cause as Error).message}`);
  }
  const words: string[] = [];
  const walk = (prefix: string, record: object): void => {
    for (const [key, inner] of Object.entries(record)) {
      if (typeof inner === 'object' && inner !== null && !Array.isArray(inner)) walk(`${prefix}${key}.`, inner);
      else {
        const text = typeof inner === 'boolean' ? (inner ? 'on' : 'off') : String(inner);
        words.push(`${prefix}${key}=${text}`.replaceAll(',', ',,'));
      }
    }
  };
  walk('', value as object);
  return words.join(',');
}

function number(key: string, text: string, max: number): number {
  const value = Number(text);
  if (!/^[0-9]{1,9}$/.test(text) || value > max) {
    throw new UsageError(`Cannot use ${key}=${text}: expected a number up to ${max}`);
  }
  return value;
}
