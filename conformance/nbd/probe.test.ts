// The same bytes against our server and its peers; the table of differences goes to the log.
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { ExportSet, NbdListener, RawImage } from '../../services/nbd/mod.ts';
import { findProgram, freePort, listening, scratch } from './peers.ts';
import { PROBED_EXPORT, PROBES, probe, table } from './probe.ts';

const { path, remove } = scratch();
test.after.always(remove);

const EXPECTED: Readonly<Record<string, string>> = {
  'unknown client flag (bit 31)': 'close',
  'bad option magic': 'close',
  'option length 2^32-1': 'close',
  'option length 64 MiB+1': 'close',
  'unknown option': 'UNSUP',
  LIST: 'ACK',
  'LIST with data': 'INVALID',
  'STARTTLS with data': 'INVALID',
  'GO name length > option': 'INVALID',
  'GO name 4097': 'INVALID',
  'GO unknown name': 'UNKNOWN',
  'name with 0xff and NUL': 'INVALID',
  'trailing bytes after info list': 'INVALID',
  '65 535 info requests, none sent': 'INVALID',
  'GO with 5 bytes of data': 'INVALID',
  'STRUCTURED_REPLY with data': 'INVALID',
  'STRUCTURED_REPLY twice': 'INVALID',
  EXTENDED_HEADERS: 'ACK',
  'SET_META before structured': 'INVALID',
  'SET_META base:allocation': 'ACK',
  'SET_META with 2^32-1 queries': 'INVALID',
  'SET_META query > option': 'TOO_BIG',
  '200 unknown options': 'cap, then close',
  'zero-length read': 'ok',
  'read past end': 'EINVAL',
  'read across end': 'EINVAL',
  'wrapping offset': 'EINVAL',
  'read > 32 MiB': 'EINVAL',
  'write length 2^32-1': 'close',
  'write past end': 'ENOSPC',
  'trim across end': 'EINVAL',
  'zeroes across end': 'ENOSPC',
  'unknown command': 'EINVAL',
  'unknown flag': 'EINVAL',
  'DF without structured': 'EINVAL',
  'REQ_ONE on a read': 'EINVAL',
  'PAYLOAD_LEN on a read': 'EINVAL',
  'FUA on a read': 'ok',
  'BLOCK_STATUS without context': 'EINVAL',
  'FLUSH with offset and length': 'EINVAL',
  'RESIZE not offered': 'EINVAL',
  'bad request magic': 'close',
  // A file of ours has no fast zeroes, and says so: FAST_ZERO was not advertised.
  'FAST_ZERO, perhaps not advertised': 'EINVAL',
  'client killed with requests in flight': 'connection only',
  'silent after connect': 'closed in time',
};

function disk(): string {
  const file = path('disk.raw');
  writeFileSync(file, '');
  truncateSync(file, 64 << 20);
  return file;
}

/** A program on its socket; undefined, and a line, where it is not there. */
async function peer(t: ExecutionContext, name: string, args: readonly string[], socket: string): Promise<boolean> {
  const program = findProgram(name);
  if (program === undefined) {
    t.log(`SKIPPED: ${name} not installed`);
    return false;
  }
  const child = spawn(program, args, { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await listening(socket);
  return true;
}

test('the table of bad messages: ours as it should be, peers beside it', async (t) => {
  t.timeout(600_000);
  t.deepEqual(PROBES.map(({ what }) => what).sort(), Object.keys(EXPECTED).sort());
  const file = disk();
  const image = await RawImage.open(file, { readOnly: false });
  const exports = new ExportSet();
  exports.add({ name: PROBED_EXPORT, image, writable: true });
  const listener = await NbdListener.listen({ type: 'unix', path: path('ours') }, exports);
  const columns = new Map([['ours', await probe(path('ours'))]]);
  await listener.close();
  await image.close();
  t.deepEqual(Object.fromEntries(columns.get('ours')!), EXPECTED);

  const config = path('nbd-server.conf');
  const unix = path('nbd-server');
  // It goes into the background: only so does it serve more than one connection.
  const pidFile = path('nbd-server.pid');
  t.teardown(() => existsSync(pidFile) && process.kill(Number(readFileSync(pidFile, 'latin1'))));
  writeFileSync(
    config,
    `[generic]\nunixsock=${unix}\nallowlist=true\nlistenaddr=127.0.0.1\nport=${await freePort()}\n[disk]\nexportname=${file}\n`,
  );
  const peers: [string, string[], string][] = [
    ['qemu-nbd', ['-k', path('qemu'), '-f', 'raw', '-t', '-e', '0', '-x', 'disk', file], path('qemu')],
    ['nbdkit', ['-f', '-U', path('nbdkit'), 'file', file], path('nbdkit')],
    ['nbd-server', ['-C', config, '-p', pidFile], unix],
  ];
  for (const [name, args, socket] of peers) {
    if (!(await peer(t, name, args, socket))) continue;
    const answers = await probe(socket);
    columns.set(name, answers);
    // What every server of the specification does: else the probes have met something else than a server.
    t.like(Object.fromEntries(answers), { 'unknown option': 'UNSUP', LIST: 'ACK', 'LIST with data': 'INVALID' }, name);
    t.is(answers.get('unknown command'), 'EINVAL', name);
  }
  t.log(`\n${table(columns)}`);
});
