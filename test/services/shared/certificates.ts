import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Folders of credentials, made by the openssl program; none is ever committed. */
export interface TestCredentials {
  /** Server (localhost, 127.0.0.1) and client `CN=alice,O=Example` of one authority */
  readonly good: string;
  /** The same authority, a certificate that has expired, for either end */
  readonly expired: string;
  /** The same authority, a server of another name, a client `CN=mallory` */
  readonly misnamed: string;
  /** Another authority altogether, which both of its ends trust */
  readonly foreign: string;
  /** The good client's authority, but no certificate of its own */
  readonly bare: string;
  /** A client with the other authority's certificate that trusts the good server */
  readonly impostor: string;
  /** keys.psk of alice and bob */
  readonly keys: string;
  /** alice with another key */
  readonly wrongKeys: string;
  /** A user that the server does not know */
  readonly strangerKeys: string;
  remove(): void;
}

export function makeCredentials(): TestCredentials {
  const root = mkdtempSync(join(tmpdir(), 'caisson-tls-'));
  const file = (...parts: string[]): string => join(root, ...parts);
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { cwd: root, stdio: ['ignore', 'ignore', 'pipe'], timeout: 60_000 });
  };
  const newKey = (path: string): void => openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', path);
  const authority = (folder: string): void => {
    mkdirSync(file(folder));
    newKey(file(folder, 'ca-key.pem'));
    const out = ['-key', file(folder, 'ca-key.pem'), '-out', file(folder, 'ca-cert.pem')];
    openssl('req', '-x509', '-new', '-days', '30', '-subj', `/CN=authority ${folder}`, ...out);
  };
  const issue = (ca: string, folder: string, end: 'server' | 'client', subject: string, days = 30): void => {
    mkdirSync(file(folder), { recursive: true });
    const [key, cert] = [file(folder, `${end}-key.pem`), file(folder, `${end}-cert.pem`)];
    newKey(key);
    const name = subject.slice(subject.lastIndexOf('=') + 1);
    const san = end === 'server' ? `DNS:${name},IP:${name === 'localhost' ? '127.0.0.1' : '192.0.2.1'}` : `DNS:${name}`;
    writeFileSync(
      file('extensions'),
      `basicConstraints=CA:FALSE\nsubjectAltName=${san}\nextendedKeyUsage=${end}Auth\nkeyUsage=digitalSignature\n`,
    );
    openssl('req', '-new', '-key', key, '-subj', subject, '-out', file('request'));
    const by = ['-CA', file(ca, 'ca-cert.pem'), '-CAkey', file(ca, 'ca-key.pem'), '-CAcreateserial'];
    const what = ['-in', file('request'), '-extfile', file('extensions'), '-days', `${days}`, '-out', cert];
    openssl('x509', '-req', ...by, ...what);
  };
  authority('good');
  authority('foreign');
  for (const folder of ['good', 'foreign']) {
    issue(folder, folder, 'server', '/CN=localhost');
    issue(folder, folder, 'client', '/O=Example/CN=alice');
  }
  for (const end of ['server', 'client'] as const) {
    issue('good', 'expired', end, end === 'server' ? '/CN=localhost' : '/CN=alice', -1);
    issue('good', 'misnamed', end, end === 'server' ? '/CN=elsewhere.example' : '/CN=mallory');
  }
  for (const folder of ['bare', 'impostor']) mkdirSync(file(folder));
  for (const folder of ['expired', 'misnamed', 'bare', 'impostor']) {
    copyFileSync(file('good', 'ca-cert.pem'), file(folder, 'ca-cert.pem'));
  }
  for (const name of ['client-cert.pem', 'client-key.pem']) copyFileSync(file('foreign', name), file('impostor', name));
  const key = (): string => randomBytes(32).toString('hex');
  const alice = key();
  for (const [folder, text] of [
    ['keys', `# users\nalice:${alice}\nbob:${key()}\n`],
    ['wrong-keys', `alice:${key()}\n`],
    ['stranger-keys', `mallory:${alice}\n`],
  ] as const) {
    mkdirSync(file(folder));
    writeFileSync(file(folder, 'keys.psk'), text, { mode: 0o600 });
  }
  return {
    good: file('good'),
    expired: file('expired'),
    misnamed: file('misnamed'),
    foreign: file('foreign'),
    bare: file('bare'),
    impostor: file('impostor'),
    keys: file('keys', 'keys.psk'),
    wrongKeys: file('wrong-keys', 'keys.psk'),
    strangerKeys: file('stranger-keys', 'keys.psk'),
    remove: () => rmSync(root, { recursive: true, force: true }),
  };
}
