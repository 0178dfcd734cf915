import type { NbdClientTls, NbdServerTls } from '../../services/nbd/mod.ts';
import { readTlsCredentials, TlsClient, type TlsIdentity, TlsServer } from '../../services/shared/mod.ts';
import { KeyValues } from '../key_value.ts';
import { isSecret } from '../secrets.ts';
import { type TlsVersions, tlsVersions } from '../tls_priority.ts';
import { UsageError } from '../usage_error.ts';
import type { NbdArguments } from './arguments.ts';

/** What --object makes: credentials, or a list of who may come in. */
type NbdObject =
  | {
      readonly kind: 'tls';
      readonly path: string;
      readonly endpoint: string;
      readonly user: string | undefined;
      readonly versions: Partial<TlsVersions>;
    }
  /** `names`: all that one client may be called by */
  | { readonly kind: 'authz'; readonly allows: (names: readonly string[]) => boolean };

/** Certificates or keys are read, and found to be good, before anything listens. @throws UsageError, TlsError */
export function serverTls(values: NbdArguments): NbdServerTls | undefined {
  const words = values.get('tls-creds');
  const authz = values.get('tls-authz');
  const mode = values.oneOf('tls-mode', ['require', 'allow'], 'require');
  for (const other of ['tls-hostname', 'tls-user']) {
    if (values.has(other)) throw new UsageError(`Cannot use --${other}: it is for --list`);
  }
  const objects = objectsOf(values);
  if (words === undefined) {
    for (const other of ['tls-authz', 'tls-mode']) {
      if (values.has(other)) throw new UsageError(`Cannot use --${other} without --tls-creds`);
    }
    return undefined;
  }
  const path = credentialsPath(words, objects, 'server');
  const authorize = authz === undefined ? {} : { authorize: authorizer(authz, objects) };
  const options = { ...authorize, ...versionsOf(objects.get(words)) };
  return { server: new TlsServer(readTlsCredentials(path, 'server'), options), mode };
}

/** Who is let in by `--tls-authz`: the id of an `--object`, or the one name that is. @throws UsageError */
export function authorizer(authz: string, objects: ReadonlyMap<string, NbdObject>): (peer: TlsIdentity) => boolean {
  const allows = allowList(authz, objects);
  return (peer) => allows(namesOf(peer));
}

/** @throws UsageError, TlsError */
export function clientTls(values: NbdArguments, host: string): NbdClientTls | undefined {
  for (const other of ['tls-authz', 'tls-mode']) {
    if (values.has(other)) throw new UsageError(`Cannot use --${other} with --list`);
  }
  const words = values.get('tls-creds');
  const objects = objectsOf(values);
  if (words === undefined) {
    for (const other of ['tls-hostname', 'tls-user']) {
      if (values.has(other)) throw new UsageError(`Cannot use --${other} without --tls-creds`);
    }
    return undefined;
  }
  const object = objects.get(words);
  const user = values.get('tls-user') ?? (object?.kind === 'tls' ? object.user : undefined);
  const credentials = readTlsCredentials(credentialsPath(words, objects, 'client'), 'client');
  const client = new TlsClient(credentials, { ...versionsOf(object), ...(user === undefined ? {} : { user }) });
  return { client, mode: 'require', serverName: values.get('tls-hostname') ?? host };
}

function versionsOf(object: NbdObject | undefined): Partial<TlsVersions> {
  return object?.kind === 'tls' ? object.versions : {};
}

function credentialsPath(words: string, objects: ReadonlyMap<string, NbdObject>, endpoint: string): string {
  const object = objects.get(words);
  if (object === undefined) return words;
  if (object.kind !== 'tls') throw new UsageError(`Cannot use --tls-creds=${words}: the --object is no credentials`);
  if (object.endpoint !== endpoint) {
    throw new UsageError(`Cannot use --tls-creds=${words}: the --object says endpoint=${object.endpoint}`);
  }
  return object.path;
}

function allowList(words: string, objects: ReadonlyMap<string, NbdObject>): (names: readonly string[]) => boolean {
  const object = objects.get(words);
  if (object === undefined) return (names) => names.includes(words);
  if (object.kind !== 'authz') throw new UsageError(`Cannot use --tls-authz=${words}: the --object is no list`);
  return object.allows;
}

/** What a client may be called by: user, subject, and alternative names. */
function namesOf(peer: TlsIdentity): readonly string[] {
  if (peer.kind === 'psk') return [peer.user];
  return peer.kind === 'x509' ? [peer.subject, ...peer.altNames] : [];
}

/** What `--object` makes, by id. @throws UsageError */
export function objectsOf(values: NbdArguments): ReadonlyMap<string, NbdObject> {
  const objects = new Map<string, NbdObject>();
  for (const text of values.all('object')) {
    if (isSecret(text)) continue; // for IMAGE
    const keys = new KeyValues('--object', text, 'qom-type');
    const id = keys.require('id');
    if (objects.has(id)) throw new UsageError(`Cannot use --object: id ${id} comes twice`);
    objects.set(id, parseObject(keys));
    keys.end();
  }
  return objects;
}

function parseObject(keys: KeyValues): NbdObject {
  const types = ['tls-creds-x509', 'tls-creds-psk', 'authz-simple', 'authz-list'] as const;
  const type = keys.oneOf('qom-type', types, 'tls-creds-x509');
  if (type === 'authz-simple') {
    const identity = keys.require('identity');
    return { kind: 'authz', allows: (names) => names.includes(identity) };
  }
  if (type === 'authz-list') return parseList(keys);
  // Without certificates of clients nobody would be known; QEMU's default is the same.
  if (!keys.flag('verify-peer', true)) throw new UsageError('Cannot use --object with verify-peer=off');
  const priority = keys.take('priority');
  return {
    kind: 'tls',
    versions: priority === undefined ? {} : tlsVersions('--object', priority),
    path: keys.require('dir'),
    endpoint: keys.oneOf('endpoint', ['server', 'client'], 'client'),
    user: keys.take('username'),
  };
}

/**
 * `authz-list,policy=deny,rules.0.match=CN=…,rules.0.format=exact|glob,rules.0.policy=allow`. The first rule that matches
 * any of a client's names decides; `policy` is for clients of whose names none matches: a name that no rule knows must
 * not let in whom a rule refuses by another.
 */
function parseList(keys: KeyValues): NbdObject {
  const otherwise = keys.oneOf('policy', ['allow', 'deny'], 'deny') === 'allow';
  const rules: { readonly matches: (name: string) => boolean; readonly allow: boolean }[] = [];
  for (let index = 0; ; index++) {
    const match = keys.take(`rules.${index}.match`);
    if (match === undefined) break;
    const isGlob = keys.oneOf(`rules.${index}.format`, ['exact', 'glob'], 'exact') === 'glob';
    const pattern = isGlob ? new RegExp(`^${match.split('*').map(RegExp.escape).join('.*')}$`, 's') : undefined;
    rules.push({
      matches: (name) => (pattern === undefined ? name === match : pattern.test(name)),
      allow: keys.oneOf(`rules.${index}.policy`, ['allow', 'deny'], 'deny') === 'allow',
    });
  }
  return { kind: 'authz', allows: (names) => rules.find(({ matches }) => names.some(matches))?.allow ?? otherwise };
}
