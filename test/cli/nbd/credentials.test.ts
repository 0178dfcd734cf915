import test from 'ava';
import { NbdArguments } from '../../../cli/nbd/arguments.ts';
import { authorizer, objectsOf } from '../../../cli/nbd/credentials.ts';
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
