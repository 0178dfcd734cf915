// TLS with other people's programs, which all have GnuTLS: libnbd's tools and QEMU's under our server, nbdkit and
// qemu-nbd over our client; keys and certificates.

import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { NbdClient, type NbdSessionSummary, RawImage } from '../../services/nbd/mod.ts';
import { readTlsCredentials, TlsClient, TlsServer } from '../../services/shared/mod.ts';
import { makeCredentials, type TestCredentials } from '../../test/fixtures/certificates.ts';
import { hasPrograms, mustRun, PeerServer, run, scratch } from './peers.ts';
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
const contents = randomBytes(5 * MIB);
let count = 0;

type Kind = 'PSK' | 'X.509';
const kinds: readonly Kind[] = ['PSK', 'X.509'];
const folderOf = (kind: Kind): string => (kind === 'PSK' ? made.keys : made.good);

async function served(
  t: ExecutionContext,
  kind: Kind,
  transport: 'unix' | 'tcp',
  mode: 'require' | 'allow' = 'require',
) {
  const id = count++;
  const file = path(`disk${id}.raw`);
  writeFileSync(file, contents);
  const image = await RawImage.open(file, { readOnly: false });
  const offered = [
    { name: 'disk', writable: true },
    { name: 'secret', writable: true, tlsOnly: true },
  ];
  const sessions: NbdSessionSummary[] = [];
  const socket = path(`s${id}`);
  const server = await serve(t, image, offered, addressOf(transport, socket), {
    tls: { server: new TlsServer(readTlsCredentials(folderOf(kind), 'server')), mode },
    onSession: (summary) => sessions.push(summary),
  });
  const { uriOf, close } = server;
  const port = Number(server.port);
  /** As libnbd reads it */
  const uri = (name: string, client = kind === 'PSK' ? made.keys : made.good): string => {
    const plain = uriOf(name).replace(/^nbd:|^nbd\+/, (scheme) => scheme.replace('nbd', 'nbds'));
    if (kind === 'PSK') {
      return `${plain.replace('://', '://alice@')}${transport === 'unix' ? '&' : '?'}tls-psk-file=${client}`;
    }
    return `${plain}${transport === 'unix' ? '&' : '?'}tls-certificates=${client}`;
  };
  return { file, socket, port, uri, plain: uriOf('disk'), sessions, close };
}

/** The credentials object and the drive of QEMU's tools */
function qemuDrive(kind: Kind, server: { socket: string; port: number }, client?: string): [string[], string] {
  const directory = client ?? (kind === 'PSK' ? dirname(made.keys) : made.good);
  const object =
    kind === 'PSK'
      ? `tls-creds-psk,id=tls0,endpoint=client,dir=${directory},username=alice`
      : `tls-creds-x509,id=tls0,endpoint=client,dir=${directory}`;
  const where =
    server.port === 0
      ? `server.type=unix,server.path=${server.socket}${kind === 'PSK' ? '' : ',tls-hostname=localhost'}`
      : `server.type=inet,server.host=127.0.0.1,server.port=${server.port}`;
  return [['--object', object], `driver=nbd,${where},export=disk,tls-creds=tls0`];
}

for (const kind of kinds) {
  for (const transport of ['unix', 'tcp'] as const) {
    test(`H11: nbdinfo over ${kind}, ${transport}`, async (t) => {
      if (!hasPrograms(t, 'nbdinfo', 'openssl')) return;
      // libnbd 1.14 checks no name on UNIX sockets; over TCP it checks the address.
      const server = await served(t, kind, transport);
      const info = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', server.uri('disk')]));
      t.like(info, { protocol: 'newstyle-fixed', TLS: true, structured: true });
      t.like(info.exports[0], { 'export-name': 'disk', 'export-size': 5 * MIB, contexts: ['base:allocation'] });
      const listed = await mustRun(t, 'nbdinfo', ['--list', server.uri('')]);
      t.regex(listed, /export="disk"/);
      t.regex(listed, /export="secret"/);
      // Keys and certificates that are not ours, and no TLS at all
      const wrong = kind === 'PSK' ? made.wrongKeys : made.impostor;
      t.not((await run('nbdinfo', [server.uri('disk', wrong)])).status, 0);
      const plain = await run('nbdinfo', [server.plain.replace('nbds', 'nbd')]);
      t.not(plain.status, 0);
      await server.close();
      t.true(server.sessions.some((session) => session.error !== undefined && session.exportName === undefined));
    });
  }

  test(`H11: nbdcopy over ${kind} reads and writes all of it`, async (t) => {
    if (!hasPrograms(t, 'nbdcopy', 'openssl')) return;
    const server = await served(t, kind, 'unix');
    const copy = path(`copy${count++}.raw`);
    await mustRun(t, 'nbdcopy', [server.uri('disk'), copy]);
    t.true(readFileSync(copy).equals(contents), 'read');
    const other = path(`other${count++}.raw`);
    const otherContents = randomBytes(5 * MIB);
    writeFileSync(other, otherContents);
    await mustRun(t, 'nbdcopy', ['--flush', other, server.uri('disk')]);
    await server.close();
    t.true(readFileSync(server.file).equals(otherContents), 'written');
    t.deepEqual(
      server.sessions.filter((session) => session.error !== undefined).map((session) => session.error!.message),
      [],
    );
  });

  for (const transport of ['unix', 'tcp'] as const) {
    test(`H11: qemu-img over ${kind}, ${transport}`, async (t) => {
      if (!hasPrograms(t, 'qemu-img', 'openssl')) return;
      const server = await served(t, kind, transport);
      const [object, drive] = qemuDrive(kind, server);
      const info = JSON.parse(
        await mustRun(t, 'qemu-img', ['info', '--output=json', ...object, '--image-opts', drive]),
      );
      t.is(info['virtual-size'], 5 * MIB);
      const copy = path(`qemu${count++}.raw`);
      await mustRun(t, 'qemu-img', ['convert', ...object, '--image-opts', drive, '-O', 'raw', copy]);
      t.true(readFileSync(copy).equals(contents));
      const wrong = kind === 'PSK' ? dirname(made.wrongKeys) : made.impostor;
      const [badObject, badDrive] = qemuDrive(kind, server, wrong);
      t.not((await run('qemu-img', ['info', ...badObject, '--image-opts', badDrive])).status, 0);
      await server.close();
    });
  }
}

test('H11: qemu-img refuses our server under another name', async (t) => {
  if (!hasPrograms(t, 'qemu-img', 'openssl')) return;
  const server = await served(t, 'X.509', 'unix');
  const [object, drive] = qemuDrive('X.509', server);
  const elsewhere = drive.replace('tls-hostname=localhost', 'tls-hostname=elsewhere.example');
  const { status, stderr } = await run('qemu-img', ['info', ...object, '--image-opts', elsewhere]);
  t.not(status, 0);
  t.regex(stderr, /does not match/);
});

test('H10: SELECTIVETLS with nbdinfo: the plain client sees the plain export, the other one both', async (t) => {
  if (!hasPrograms(t, 'nbdinfo', 'openssl')) return;
  const server = await served(t, 'PSK', 'unix', 'allow');
  const plain = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', '--list', server.plain]));
  t.is(plain.TLS, false);
  t.deepEqual(
    plain.exports.map((each: Record<string, unknown>) => each['export-name']),
    ['disk'],
  );
  t.not((await run('nbdinfo', [server.plain.replace('disk', 'secret')])).status, 0);
  const secure = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', server.uri('secret')]));
  t.is(secure.TLS, true);
});

const clientOf = (kind: Kind): TlsClient =>
  new TlsClient(readTlsCredentials(folderOf(kind), 'client'), kind === 'PSK' ? { user: 'alice' } : {});

/** The first byte and the last, one write, and the ways in which a client must not get in. */
async function exercise(t: ExecutionContext, kind: Kind, uri: string): Promise<void> {
  const tls = { client: clientOf(kind) };
  const client = await NbdClient.connect(uri, { tls });
  t.is(client.peer?.kind, kind === 'PSK' ? 'psk' : 'x509');
  const all = Buffer.alloc(5 * MIB);
  await client.read(0, all);
  t.true(all.equals(contents));
  const data = randomBytes(300_000);
  await client.write(12_345, data, { fua: true });
  await client.read(0, all);
  t.true(all.subarray(12_345, 312_345).equals(data));
  await client.close();
  // Nobody gets as far as an open export: refused in the handshake, or cut off behind it.
  for (const folder of kind === 'PSK' ? [made.strangerKeys, made.wrongKeys] : [made.impostor, made.expired]) {
    const stranger = new TlsClient(readTlsCredentials(folder, 'client'));
    await t.throwsAsync(NbdClient.connect(uri, { tls: { client: stranger } }), undefined, folder);
  }
  await t.throwsAsync(NbdClient.connect(uri.replace('nbds', 'nbd')), { message: /ERR_TLS_REQD/ });
  if (kind === 'X.509') {
    const misled = { ...tls, serverName: 'elsewhere.example' };
    await t.throwsAsync(NbdClient.connect(uri, { tls: misled }), { code: 'ERR_TLS_PEER' });
  }
}

for (const kind of kinds) {
  test(`C2: nbdkit --tls=require over ${kind}`, async (t) => {
    if (!hasPrograms(t, 'nbdkit', 'openssl')) return;
    const id = count++;
    const [file, socket] = [path(`kit${id}.raw`), path(`kit${id}.sock`)];
    writeFileSync(file, contents);
    const tls = kind === 'PSK' ? [`--tls-psk=${made.keys}`] : [`--tls-certificates=${made.good}`, '--tls-verify-peer'];
    const server = await PeerServer.start(
      t,
      'nbdkit',
      ['-f', '--tls=require', ...tls, '-U', socket, 'file', file],
      socket,
    );
    await exercise(t, kind, `nbds+unix:///?socket=${socket}`);
    await server.stop();
  });

  test(`C2: qemu-nbd --tls-creds over ${kind}`, async (t) => {
    if (!hasPrograms(t, 'qemu-nbd', 'openssl')) return;
    const id = count++;
    const [file, socket] = [path(`qemu${id}.raw`), path(`qemu${id}.sock`)];
    writeFileSync(file, contents);
    const object =
      kind === 'PSK'
        ? `tls-creds-psk,id=tls0,endpoint=server,dir=${dirname(made.keys)}`
        : `tls-creds-x509,id=tls0,endpoint=server,dir=${made.good},verify-peer=yes`;
    const args = ['--object', object, '--tls-creds', 'tls0', '-k', socket, '-f', 'raw', '-e', '4', '-t', file];
    const server = await PeerServer.start(t, 'qemu-nbd', args, socket);
    await exercise(t, kind, `nbds+unix:///?socket=${socket}`);
    await server.stop();
  });
}

test('C2: nbdkit without TLS: a client that requires it leaves, one that allows it stays', async (t) => {
  if (!hasPrograms(t, 'nbdkit', 'openssl')) return;
  const socket = path('kit-plain.sock');
  const server = await PeerServer.start(t, 'nbdkit', ['-f', '--tls=off', '-U', socket, 'memory', '1M'], socket);
  const client = clientOf('PSK');
  for (const uri of [`nbd+unix:///?socket=${socket}`, `nbds+unix:///?socket=${socket}`]) {
    await t.throwsAsync(NbdClient.connect(uri, { tls: { client } }), { code: 'ERR_WIRE_STATE' });
  }
  const plain = await NbdClient.connect(`nbd+unix:///?socket=${socket}`, { tls: { client, mode: 'allow' } });
  t.is(plain.peer, undefined);
  await plain.close();
  await server.stop();
});
