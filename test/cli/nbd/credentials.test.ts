import test from 'ava';
import { NbdArguments } from '../../../cli/nbd/arguments.ts';
import { authorizer, objectsOf } from '../../../cli/nbd/credentials.ts';
import { tlsVersions } from '../../../cli/tls_priority.ts';
import { UsageError } from '../../../cli/usage_error.ts';
import type { TlsIdentity } from '../../../services/shared/mod.ts';

const client = (subject: string, ...altNames: string[]): TlsIdentity => {
  return { kind: 'x509', subject, altNames, fingerprint: '' };
};

function lets(rules: string, peer: TlsIdentity): boolean {
  return authorizer('a', objectsOf(new NbdArguments([`--object=authz-list,id=a,${rules}`])))(peer);
}

test('authz-list refuses a subject that a rule denies, whatever other names its certificate has', (t) => {
  const rules = 'policy=allow,rules.0.match=CN=mallory,,O=Example,rules.0.policy=deny';
  t.false(lets(rules, client('CN=mallory,O=Example')));
  t.false(lets(rules, client('CN=mallory,O=Example', 'DNS:host.example')));
  t.true(lets(rules, client('CN=alice,O=Example', 'DNS:host.example')));
});

test('authz-list refuses an alternative name that a rule denies, and goes by the first rule that matches', (t) => {
  const rules =
    'policy=deny,rules.0.match=DNS:old.*,rules.0.format=glob,rules.0.policy=deny,rules.1.match=CN=alice,rules.1.policy=allow';
  t.false(lets(rules, client('CN=alice', 'DNS:old.example')));
  t.true(lets(rules, client('CN=alice', 'DNS:new.example')));
  t.false(lets(rules, client('CN=bob', 'DNS:new.example')));
});

test('--tls-authz lets in by any one of the names that a certificate proves', (t) => {
  const letsIn = authorizer('DNS:host.example', new Map());
  t.true(letsIn(client('CN=alice', 'DNS:other.example', 'DNS:host.example')));
  t.false(letsIn(client('CN=DNS:host.example')));
  t.false(letsIn({ kind: 'anonymous' }));
});

for (const [priority, minVersion, maxVersion] of [
  ['NORMAL', 'TLSv1.2', 'TLSv1.3'],
  ['@SYSTEM', 'TLSv1.2', 'TLSv1.3'],
  ['NORMAL:-VERS-TLS1.3', 'TLSv1.2', 'TLSv1.2'],
  ['NORMAL:-VERS-ALL:+VERS-TLS1.3', 'TLSv1.3', 'TLSv1.3'],
  ['SECURE128:!VERS-TLS1.2:-VERS-TLS1.0:-VERS-TLS1.1', 'TLSv1.3', 'TLSv1.3'],
] as const) {
  test(`priority=${priority} chooses the versions that QEMU would speak`, (t) => {
    t.deepEqual(tlsVersions('--object', priority), { minVersion, maxVersion });
    const objects = objectsOf(new NbdArguments([`--object=tls-creds-x509,id=t,dir=d,priority=${priority}`]));
    const object = objects.get('t');
    t.deepEqual(object?.kind === 'tls' ? object.versions : undefined, { minVersion, maxVersion });
  });
}

for (const [priority, expected] of [
  ['LEGACY', /LEGACY is no set/],
  ['NORMAL:-VERS-ALL', /no version is left/],
  ['NORMAL:+VERS-TLS1.1', /is not spoken here/],
  ['NORMAL:-VERS-TLS1.4', /is not spoken here/],
  ['NORMAL:+ANON-DH', /ANON-DH is not about versions/],
  ['NORMAL:-AES-128-GCM', /is not about versions/],
  ['', / is no set/],
] as const) {
  test(`priority=${priority} is refused: nothing is weakened, and nothing is ignored`, (t) => {
    t.throws(() => tlsVersions('--object', priority), { instanceOf: UsageError, message: expected });
  });
}

test('without priority= the newest version alone is spoken', (t) => {
  const object = objectsOf(new NbdArguments(['--object=tls-creds-psk,id=t,dir=d'])).get('t');
  t.deepEqual(object?.kind === 'tls' ? object.versions : undefined, {});
});
