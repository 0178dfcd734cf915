import { WireError } from '../bytes/mod.ts';
import { MAX_STRING_BYTES } from './limits.ts';

/** TCP port of NBD (IANA) */
export const NBD_PORT = 10809;

/** Where an NBD server is and which export is meant (doc/uri.md of the NBD project). */
export interface NbdUri {
  readonly tls: boolean;
  readonly address:
    | { readonly type: 'inet'; readonly host: string; readonly port: number }
    | { readonly type: 'unix'; readonly path: string }
    | { readonly type: 'vsock'; readonly cid: number; readonly port: number };
  readonly exportName: string;
  /** `alice@` in front of the host: the TLS identity */
  readonly user: string | undefined;
  /** Query parameters but `socket`, such as `tls-psk-file` */
  readonly parameters: ReadonlyMap<string, string>;
}

const pattern =
  /^(nbds?)(?:\+(unix|vsock|tcp))?:\/\/(?:([^@/?#]*)@)?(\[[^\]/?#]*\]|[^:/?#]*)(?::([0-9]{1,10}))?(\/[^?#]*)?(?:\?([^#]*))?$/i;

/**
 * Reads `nbd://host:port/export`, `nbds://`, `nbd+unix:///export?socket=PATH`, `nbd+vsock://CID:PORT/export`.
 * @throws WireError with code ERR_WIRE_TEXT
 */
export function parseNbdUri(text: string): NbdUri {
  const match = pattern.exec(text);
  if (match === null) throw wrong(text, 'not nbd:// nbds:// nbd+unix:// nbd+vsock://');
  const [, scheme, transport = 'tcp', user, host = '', portText, path = '', query = ''] = match;
  const parameters = parseQuery(text, query);
  const exportName = decode(text, path.slice(1));
  if (new TextEncoder().encode(exportName).length > MAX_STRING_BYTES) {
    throw wrong(text.slice(0, 60), `export name is longer than ${MAX_STRING_BYTES} bytes`);
  }
  const port = portText === undefined ? NBD_PORT : Number(portText);
  const common = {
    tls: scheme!.toLowerCase() === 'nbds',
    exportName,
    user: user === undefined ? undefined : decode(text, user),
  };
  switch (transport.toLowerCase()) {
    case 'unix': {
      const socket = parameters.get('socket');
      if (socket === undefined || socket === '') throw wrong(text, 'socket=PATH is missing');
      if (host !== '' || portText !== undefined) throw wrong(text, 'a unix socket has no host');
      parameters.delete('socket');
      return { ...common, address: { type: 'unix', path: socket }, parameters };
    }
    case 'vsock': {
      const cid = host === '' ? 2 : Number(host);
      if (!Number.isInteger(cid) || cid < 0 || cid > 0xffff_ffff) throw wrong(text, 'vsock needs a number for a host');
      if (port > 0xffff_ffff) throw wrong(text, `port ${port} is above 2^32`);
      return { ...common, address: { type: 'vsock', cid, port }, parameters };
    }
    default: {
      if (port < 1 || port > 65535) throw wrong(text, `port ${port}, range is 1..65535`);
      const name = host.startsWith('[') ? host.slice(1, -1) : decode(text, host);
      return { ...common, address: { type: 'inet', host: name === '' ? 'localhost' : name, port }, parameters };
    }
  }
}

/** The other way: what a user copies into `nbdinfo`. */
export function formatNbdUri(uri: Pick<NbdUri, 'address' | 'exportName'> & { readonly tls?: boolean }): string {
  const scheme = uri.tls === true ? 'nbds' : 'nbd';
  const name = encodeURIComponent(uri.exportName);
  const { address } = uri;
  if (address.type === 'unix') {
    return `${scheme}+unix:///${name}?socket=${encodeURIComponent(address.path).replaceAll('%2F', '/')}`;
  }
  if (address.type === 'vsock') return `${scheme}+vsock://${address.cid}:${address.port}/${name}`;
  const host = address.host.includes(':') ? `[${address.host}]` : address.host;
  return `${scheme}://${host}${address.port === NBD_PORT ? '' : `:${address.port}`}/${name}`;
}

function parseQuery(text: string, query: string): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const pair of query === '' ? [] : query.split(/[&;]/)) {
    const equals = pair.indexOf('=');
    if (equals < 1) throw wrong(text, `parameter ${JSON.stringify(pair)} has no value`);
    const name = decode(text, pair.slice(0, equals));
    if (parameters.has(name)) throw wrong(text, `parameter ${name} is given twice`);
    parameters.set(name, decode(text, pair.slice(equals + 1)));
  }
  return parameters;
}

function decode(text: string, part: string): string {
  let decoded: string;
  try {
    decoded = decodeURIComponent(part);
  } catch (cause) {
    throw new WireError('ERR_WIRE_TEXT', `Cannot read NBD URI ${JSON.stringify(text)}: wrong % escape`, { cause });
  }
  if (decoded.includes('\0')) throw wrong(text, 'contains NUL');
  return decoded;
}

function wrong(text: string, why: string): WireError {
  return new WireError('ERR_WIRE_TEXT', `Cannot read NBD URI ${JSON.stringify(text)}: ${why}`);
}
