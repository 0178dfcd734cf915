// TLS with the peers that tls.test.ts has not: the reference client and server, nbdkit's client, qemu-storage-daemon,
// and gnutls-cli for what no NBD program would say.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { encodeClientFlags, encodeOption, OPT, REP } from '../../protocols/nbd/mod.ts';
import { MemoryImage, NbdClient, type NbdSessionSummary } from '../../services/nbd/mod.ts';
import { readTlsCredentials, TlsClient, TlsServer } from '../../services/shared/mod.ts';
import { makeCredentials, type TestCredentials } from '../../test/fixtures/certificates.ts';
import { findProgram, freePort, hasPrograms, listening, mustRun, PeerServer, run, scratch } from './peers.ts';
import { addressOf, serve } from './served.ts';

const { path, remove } = scratch();
let made: TestCredentials;
test.before(() => {
  made = makeCredentials();
});
test.after.always(() => {
  made.remove();
  remove();
});
const MIB = 1 << 20;
const contents = randomBytes(2 * MIB);
let count = 0;

type Kind = 'PSK' | 'X.509';
const folderOf = (kind: Kind): string => (kind === 'PSK' ? made.keys : made.good);

async function served(
  t: ExecutionContext,
  kind: Kind,
  transport: 'unix' | 'tcp',
  minVersion: 'TLSv1.2' | 'TLSv1.3' = 'TLSv1.3',
) {
  const image = new MemoryImage(contents.length);
  await image.write(0, contents);
  const offered = [
    { name: 'disk', writable: true },
    { name: 'other', writable: false },
  ];
  const sessions: NbdSessionSummary[] = [];
  const socket = path(`s${count++}`);
  const { port } = await serve(t, image, offered, addressOf(transport, socket), {
    tls: { server: new TlsServer(readTlsCredentials(folderOf(kind), 'server'), { minVersion }), mode: 'require' },
    onSession: (summary) => sessions.push(summary),
  });
  return { socket, image, port, sessions };
}

const certificates = (folder: string, end: 'client' | 'server') => ({
  ca: join(made.good, 'ca-cert.pem'),
  cert: join(folder, `${end}-cert.pem`),
  key: join(folder, `${end}-key.pem`),
});

test('C2: nbd-client lists our exports over X.509, and not with another authority’s certificate', async (t) => {
  if (!hasPrograms(t, 'nbd-client', 'openssl')) return;
  // nbd-client of Debian 12 asks for TLS 1.2 and nothing else.
  const server = await served(t, 'X.509', 'tcp', 'TLSv1.2');
  const list = (folder: string) => {
    const { ca, cert, key } = certificates(folder, 'client');
    const tls = ['-enable-tls', '-cacertfile', ca, '-certfile', cert, '-keyfile', key, '-tlshostname', 'localhost'];
    return run('nbd-client', ['-l', '127.0.0.1', server.port, ...tls]);
  };
  const { stdout, stderr } = await list(made.good);
  t.regex(stdout, /^disk/m, stderr);
  t.regex(stdout, /^other/m);
  t.notRegex((await list(made.impostor)).stdout, /^disk/m);
  t.notRegex((await run('nbd-client', ['-l', '127.0.0.1', server.port])).stdout, /^disk/m, 'in clear text');
});

test('C2: our client over X.509 to nbd-server, which requires it', async (t) => {
  if (!hasPrograms(t, 'nbd-server', 'openssl')) return;
  const [file, socket, config, pidFile] = ['tls.raw', 'tls.sock', 'tls.conf', 'tls.pid'].map(path) as string[];
  writeFileSync(file!, contents);
  const { ca, cert, key } = certificates(made.good, 'server');
  const tls = `certfile=${cert}\nkeyfile=${key}\ncacertfile=${ca}\nforce_tls=true\n`;
  const where = `unixsock=${socket}\nallowlist=true\nlistenaddr=127.0.0.1\nport=${await freePort()}\n`;
  writeFileSync(config!, `[generic]\n${where}${tls}[disk]\nexportname=${file}\nflush=true\nfua=true\n`);
  await mustRun(t, 'nbd-server', ['-C', config!, '-p', pidFile!]);
  await listening(socket!);
  t.teardown(() => process.kill(Number(readFileSync(pidFile!, 'latin1'))));
  const uri = `nbds+unix:///disk?socket=${socket}`;
  const client = new TlsClient(readTlsCredentials(made.good, 'client'), { minVersion: 'TLSv1.2' });
  const disk = await NbdClient.connect(uri, { tls: { client, serverName: 'localhost' } });
  t.is(disk.peer?.kind, 'x509');
  const into = Buffer.alloc(contents.length);
  await disk.read(0, into);
  t.true(into.equals(contents));
  const data = randomBytes(70_000);
  await disk.write(1001, data, { fua: true });
  await disk.read(0, into);
  t.true(into.subarray(1001, 71_001).equals(data));
  await disk.close();
  await t.throwsAsync(NbdClient.connect(uri.replace('nbds', 'nbd')), undefined, 'in clear text');
  const misled = { client, serverName: 'elsewhere.example' };
  await t.throwsAsync(NbdClient.connect(uri, { tls: misled }), { code: 'ERR_TLS_PEER' });
});

for (const kind of ['PSK', 'X.509'] as const) {
  test(`H11: nbdkit’s nbd plugin reads and writes our export over ${kind}`, async (t) => {
    if (!hasPrograms(t, 'nbdkit', 'nbdcopy', 'openssl')) return;
    const server = await served(t, kind, 'unix');
    const socket = path(`plugin${count++}.sock`);
    const how = kind === 'PSK' ? [`tls-psk=${made.keys}`, 'tls-username=alice'] : [`tls-certificates=${made.good}`];
    // No name is checked over a UNIX socket: libnbd of Debian 12 has no way to say which.
    const tls = ['tls=require', ...how, ...(kind === 'PSK' ? [] : ['tls-verify=false'])];
    const plugin = await PeerServer.start(
      t,
      'nbdkit',
      ['-f', '-U', socket, 'nbd', `socket=${server.socket}`, 'export=disk', 'shared=true', ...tls],
      socket,
    );
    const through = `nbd+unix:///?socket=${socket}`;
    const copy = path(`copy${count++}.raw`);
    await mustRun(t, 'nbdcopy', [through, copy]);
    t.true(readFileSync(copy).equals(contents));
    const other = path(`other${count++}.raw`);
    const changed = randomBytes(contents.length);
    writeFileSync(other, changed);
    await mustRun(t, 'nbdcopy', ['--flush', other, through]);
    await plugin.stop();
    const into = Buffer.alloc(changed.length);
    await server.image.read(0, into);
    t.true(into.equals(changed));
    t.true(server.sessions.every((session) => session.peer?.kind === (kind === 'PSK' ? 'psk' : 'x509')));
  });

  test(`C2: our client over ${kind} to qemu-storage-daemon`, async (t) => {
    if (!hasPrograms(t, 'qemu-storage-daemon', 'openssl')) return;
    const [file, socket] = [path(`qsd${count}.raw`), path(`qsd${count++}.sock`)];
    writeFileSync(file, contents);
    const object =
      kind === 'PSK'
        ? `tls-creds-psk,id=tls0,endpoint=server,dir=${dirname(made.keys)}`
        : `tls-creds-x509,id=tls0,endpoint=server,dir=${made.good},verify-peer=yes`;
    const daemon = await PeerServer.start(
      t,
      'qemu-storage-daemon',
      [
        ...['--object', object, '--blockdev', `file,node-name=f,filename=${file}`],
        ...['--nbd-server', `addr.type=unix,addr.path=${socket},tls-creds=tls0`],
        ...['--export', 'type=nbd,id=e,node-name=f,name=disk,writable=on'],
      ],
      socket,
    );
    const user = kind === 'PSK' ? { user: 'alice' } : {};
    const client = new TlsClient(readTlsCredentials(folderOf(kind), 'client'), user);
    const uri = `nbds+unix:///disk?socket=${socket}`;
    const disk = await NbdClient.connect(uri, { tls: { client, serverName: 'localhost' } });
    const into = Buffer.alloc(contents.length);
    await disk.read(0, into);
    t.true(into.equals(contents));
    await disk.write(5, Buffer.alloc(300_000, 3), { fua: true });
    await disk.close();
    await t.throwsAsync(NbdClient.connect(uri.replace('nbds', 'nbd')), { message: /ERR_TLS_REQD/ });
    await daemon.stop();
    t.true(readFileSync(file).equals(Buffer.from(contents).fill(3, 5, 300_005)));
  });
}

/** What gnutls-cli gets from our server behind STARTTLS, and what our server makes of the session. */
async function gnutls(
  t: ExecutionContext,
  kind: Kind,
  args: readonly string[],
  waitMs = 2000,
): Promise<{ answered: boolean; said: string; session: NbdSessionSummary }> {
  const server = await served(t, kind, 'tcp');
  const child = spawn(findProgram('gnutls-cli')!, ['--starttls', ...args, '-p', server.port, 'localhost'], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  t.teardown(() => child.kill('SIGKILL'));
  let said = Buffer.alloc(0);
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk: Buffer) => {
      said = Buffer.concat([said, chunk]);
    });
  }
  child.stdin.on('error', () => {});
  const until = async (what: () => boolean, waitMs = 10_000): Promise<boolean> => {
    for (let waited = 0; waited < waitMs && !what(); waited += 20) await new Promise((go) => setTimeout(go, 20));
    return what();
  };
  // Plain text first; the signal is gnutls-cli's word for "now TLS".
  t.true(await until(() => said.includes('IHAVEOPT')), said.toString('latin1'));
  child.stdin.write(Buffer.concat([encodeClientFlags(3), encodeOption(OPT.STARTTLS)]));
  const accepted = Buffer.alloc(8);
  accepted.writeUInt32BE(OPT.STARTTLS, 0);
  accepted.writeUInt32BE(REP.ACK, 4);
  t.true(await until(() => said.includes(accepted)), 'STARTTLS is acknowledged');
  const before = said.length;
  child.kill('SIGALRM');
  await until(() => /Handshake was completed|\*\*\* (?:Fatal|Handshake)|alert/i.test(said.toString('latin1')), 5000);
  child.stdin.write(encodeOption(OPT.LIST));
  const answered = await until(() => said.subarray(before).includes('disk'), waitMs);
  child.kill('SIGKILL');
  t.true(await until(() => server.sessions.length > 0), 'the session is over');
  return { answered, said: said.subarray(before).toString('latin1'), session: server.sessions[0]! };
}

test('H11: gnutls-cli with the right key or certificate gets an answer inside TLS', async (t) => {
  if (!hasPrograms(t, 'gnutls-cli', 'openssl')) return;
  const { ca, cert, key } = certificates(made.good, 'client');
  const good = ['--x509cafile', ca, '--x509certfile', cert, '--x509keyfile', key];
  const x509 = await gnutls(t, 'X.509', good, 15_000);
  t.true(x509.answered, `${x509.said}\n${x509.session.error?.stack}`);
  const alice = /^alice:(.*)$/m.exec(readFileSync(made.keys, 'utf8'))![1]!;
  const psk = [
    '--pskusername',
    'alice',
    '--pskkey',
    alice,
    '--priority',
    'NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+PSK',
  ];
  t.true((await gnutls(t, 'PSK', psk, 15_000)).answered);
});

const PSK_PRIORITY = ['--priority', 'NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK:+PSK'];
for (const [what, kind, args] of [
  ['without a certificate', 'X.509', () => ['--x509cafile', certificates(made.good, 'client').ca]],
  [
    'with a certificate of another authority',
    'X.509',
    () => {
      const { ca, cert, key } = certificates(made.impostor, 'client');
      return ['--x509cafile', ca, '--x509certfile', cert, '--x509keyfile', key];
    },
  ],
  ['with TLS 1.1 at most', 'X.509', () => ['--insecure', '--priority', 'NORMAL:-VERS-ALL:+VERS-TLS1.1']],
  ['with TLS 1.2 at most', 'X.509', () => ['--insecure', '--priority', 'NORMAL:-VERS-ALL:+VERS-TLS1.2']],
  ['with another key', 'PSK', () => ['--pskusername', 'alice', '--pskkey', 'ab'.repeat(32), ...PSK_PRIORITY]],
  ['with an unknown user', 'PSK', () => ['--pskusername', 'eve', '--pskkey', 'ab'.repeat(32), ...PSK_PRIORITY]],
  [
    'with a user’s name of 64 KiB',
    'PSK',
    () => ['--pskusername', 'x'.repeat(65_000), '--pskkey', 'ab'.repeat(32), ...PSK_PRIORITY],
  ],
  [
    'with a key where certificates are wanted',
    'X.509',
    () => ['--pskusername', 'a', '--pskkey', 'ab', ...PSK_PRIORITY],
  ],
] as const) {
  test(`H11: gnutls-cli ${what} gets no answer inside TLS, and its session ends with a code`, async (t) => {
    if (!hasPrograms(t, 'gnutls-cli', 'openssl')) return;
    const { answered, said, session } = await gnutls(t, kind, args());
    t.false(answered, said);
    t.regex((session.error as { code?: string } | undefined)?.code ?? '', /^ERR_(?:TLS|WIRE)_/);
    t.is(session.exportName, undefined);
  });
}
