// Our server under other people's clients: libnbd's tools, QEMU's, fio. UNIX and TCP.

import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { MemoryImage, RawImage } from '../../services/nbd/mod.ts';
import { hasPrograms, mustRun, PeerServer, run, scratch } from './peers.ts';
import { addressOf, serve } from './served.ts';

const { path, remove } = scratch();
test.after.always(remove);
const MIB = 1 << 20;

/** 24 MiB of which 8 are random, 8 a hole, 7 random, and 1 a hole; not a whole number of pages */
function newDisk(file: string): void {
  const fd = openSync(file, 'w');
  writeSync(fd, first, 0, first.length, 0);
  writeSync(fd, second, 0, second.length, 16 * MIB);
  ftruncateSync(fd, 24 * MIB + 512);
  closeSync(fd);
}
const first = randomBytes(8 * MIB);
const second = randomBytes(7 * MIB);
const source = path('source.raw');
newDisk(source);

let count = 0;
/** A fresh copy behind a fresh listener. */
async function served(
  t: ExecutionContext,
  transport: 'unix' | 'tcp',
  options: { readOnly?: boolean; name?: string } = {},
) {
  const id = count++;
  const file = path(`disk${id}.raw`);
  newDisk(file);
  const image = await RawImage.open(file, { readOnly: options.readOnly ?? false });
  const name = options.name ?? '';
  const offered = [
    { name, description: 'conformance', writable: true },
    { name: 'memory', image: new MemoryImage(MIB), writable: false },
  ];
  const { uriOf, close } = await serve(t, image, offered, addressOf(transport, path(`s${id}`)));
  return { file, uri: uriOf(name), close };
}

for (const transport of ['unix', 'tcp'] as const) {
  test(`nbdinfo sees what we offer, over ${transport}`, async (t) => {
    if (!hasPrograms(t, 'nbdinfo')) return;
    const server = await served(t, transport, { name: 'disk' });
    const info = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', server.uri]));
    t.like(info, { protocol: 'newstyle-fixed', TLS: false, structured: true });
    t.like(info.exports[0], {
      'export-name': 'disk',
      'export-size': 24 * MIB + 512,
      contexts: ['base:allocation'],
      is_read_only: false,
      can_flush: true,
      can_fua: true,
      can_trim: true,
      can_zero: true,
      can_df: true,
      can_cache: true,
      can_multi_conn: true,
      block_size_maximum: 32 * MIB,
    });
    const listed = JSON.parse(await mustRun(t, 'nbdinfo', ['--list', '--json', server.uri]));
    t.deepEqual(
      listed.exports.map((it: Record<string, unknown>) => it['export-name']),
      ['disk', 'memory'],
    );
    await mustRun(t, 'nbdinfo', ['--can', 'fua', server.uri]);
    t.not((await run('nbdinfo', ['--can', 'fast-zero', server.uri])).status, 0);
    t.not((await run('nbdinfo', [server.uri.replace('disk', 'nope')])).status, 0);
    await server.close();
  });

  test(`nbdcopy reads and writes with four connections, over ${transport}`, async (t) => {
    if (!hasPrograms(t, 'nbdcopy')) return;
    const server = await served(t, transport);
    const out = path(`out-${transport}.raw`);
    const many = ['--connections=4', '--requests=64'];
    await mustRun(t, 'nbdcopy', [...many, server.uri, out]);
    t.true(readFileSync(out).equals(readFileSync(source)));
    const other = path(`other-${transport}.raw`);
    writeFileSync(other, randomBytes(24 * MIB + 512));
    await mustRun(t, 'nbdcopy', [...many, '--flush', other, server.uri]);
    t.true(readFileSync(server.file).equals(readFileSync(other)));
    await server.close();
  });

  test(`qemu-img compares, maps and converts in both directions, over ${transport}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const server = await served(t, transport);
    await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', server.uri, source]);
    const map = JSON.parse(await mustRun(t, 'qemu-img', ['map', '--output=json', '-f', 'raw', server.uri]));
    const zero = (map as { start: number; length: number; zero: boolean }[]).filter((extent) => extent.zero);
    t.like(zero[0], { start: 8 * MIB, length: 8 * MIB });
    const qcow2 = path(`converted-${transport}.qcow2`);
    await mustRun(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', server.uri, qcow2]);
    await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', qcow2, source]);
    await mustRun(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 0x77 0 24M', server.uri]);
    await mustRun(t, 'qemu-img', ['convert', '-n', '-W', '-m', '16', '-f', 'qcow2', '-O', 'raw', qcow2, server.uri]);
    await server.close();
    t.true(readFileSync(server.file).equals(readFileSync(source)));
  });
}

test('qemu-io: odd offsets, zeroes, discards, FUA, patterns', async (t) => {
  if (!hasPrograms(t, 'qemu-io')) return;
  const server = await served(t, 'unix');
  const commands = [
    'write -P 0xaa 0 1M',
    'write -z -u 0 512k',
    'read -P 0 0 512k',
    'read -P 0xaa 512k 512k',
    'write -f -P 0x55 511 3',
    'read -P 0x55 511 3',
    'read -P 0 510 1',
    'discard 640k 64k',
    'write -P 0x11 16M 8M',
    'read -P 0x11 16M 8M',
    'write -z 17M 3M',
    'read -P 0 17M 3M',
    'aio_write -P 0x66 2M 1M',
    'aio_write -P 0x67 3M 1M',
    'aio_flush',
    'read -P 0x66 2M 1M',
    'read -P 0x67 3M 1M',
    'flush',
  ];
  const out = await mustRun(t, 'qemu-io', ['-f', 'raw', ...commands.flatMap((it) => ['-c', it]), server.uri]);
  t.notRegex(out, /failed|error|Pattern verification/i);
  await server.close();
  t.is(readFileSync(server.file)[512], 0x55);
});

test('a read-only export stays as it is', async (t) => {
  if (!hasPrograms(t, 'qemu-io', 'nbdinfo')) return;
  const server = await served(t, 'unix', { readOnly: true });
  await mustRun(t, 'nbdinfo', ['--is', 'read-only', server.uri]);
  t.not((await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', server.uri])).status, 0);
  await mustRun(t, 'qemu-io', ['-r', '-f', 'raw', '-c', 'read 0 512', server.uri]);
  await server.close();
  t.true(readFileSync(server.file).equals(readFileSync(source)));
});

test('nbdsh: requests that a good client would not send get an error and the connection lives', async (t) => {
  if (!hasPrograms(t, 'nbdsh')) return;
  const server = await served(t, 'unix');
  const script = `
import nbd, errno
h.set_strict_mode(0)
size = h.get_size()
def refused(what, want):
    try:
        what()
    except nbd.Error as e:
        assert e.errnum == want, (e.errnum, want, e)
    else:
        raise AssertionError("not refused")
refused(lambda: h.pread(512, size), errno.EINVAL)
refused(lambda: h.pread(512, size - 1), errno.EINVAL)
refused(lambda: h.pwrite(b'x' * 512, size), errno.ENOSPC)
refused(lambda: h.zero(512, size), errno.ENOSPC)
refused(lambda: h.trim(512, size), errno.EINVAL)
refused(lambda: h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO), errno.EINVAL)
refused(lambda: h.pread(512, 0, 1 << 9), errno.EINVAL)
refused(lambda: h.cache(512, 0, nbd.CMD_FLAG_FUA), errno.EINVAL)
h.pwrite(b'hello', 3, nbd.CMD_FLAG_FUA)
assert h.pread(5, 3) == b'hello'
assert h.pread(5, 3, nbd.CMD_FLAG_DF) == b'hello'
h.zero(5, 3, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(5, 3) == b'\\0' * 5
h.cache(4096, 0)
h.flush()
print("done")
`;
  const out = await mustRun(t, 'nbdsh', ['-u', server.uri, '-c', script]);
  t.is(out.trim(), 'done');
  await server.close();
});

test('nbdsh: structured pieces, block status and option mode', async (t) => {
  if (!hasPrograms(t, 'nbdsh')) return;
  const server = await served(t, 'unix', { name: 'disk' });
  const script = `
h.set_opt_mode(True)
h.add_meta_context("base:allocation")
h.connect_uri("${server.uri}")
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["disk", "memory"], names
h.set_export_name("disk")
h.opt_info()
assert h.get_size() == ${24 * MIB + 512}
h.opt_go()
chunks = []
def chunk(buf, offset, status, error):
    chunks.append((offset, len(buf), status))
h.pread_structured(65536, 8 * 1024 * 1024, chunk)
assert chunks == [(8 * 1024 * 1024, 65536, nbd.READ_HOLE)], chunks
del chunks[:]
h.pread_structured(65536, 0, chunk)
assert chunks == [(0, 65536, nbd.READ_DATA)], chunks
seen = []
def extents(context, offset, entries, error):
    seen.append((context, offset, entries[1]))
h.block_status(16 * 1024 * 1024, 0, extents)
assert seen and seen[0][0] == "base:allocation" and seen[0][2] == 0, seen
print("done")
`;
  const out = await mustRun(t, 'nbdsh', ['-c', 'import nbd', '-c', script]);
  t.is(out.trim(), 'done');
  await server.close();
});

test('fio verifies random writes, over UNIX', async (t) => {
  if (!hasPrograms(t, 'fio')) return;
  const help = await run('fio', ['--enghelp']);
  if (!/\bnbd\b/.test(help.stdout)) {
    t.log('SKIPPED: fio has no nbd engine');
    t.pass();
    return;
  }
  const server = await served(t, 'unix');
  const job = [
    '--name=v',
    '--ioengine=nbd',
    `--uri=${server.uri}`,
    '--rw=randrw',
    '--verify=crc32c',
    '--verify_state_save=0',
    '--bs=4k',
  ];
  await mustRun(t, 'fio', [
    ...job,
    '--iodepth=32',
    '--size=16m',
    '--verify_fatal=1',
    '--verify_state_save=0',
    '--thread',
  ]);
  await server.close();
});

test('nbdkit’s nbd plugin reads and writes through our server, with several connections', async (t) => {
  if (!hasPrograms(t, 'nbdkit', 'nbdcopy')) return;
  const server = await served(t, 'unix');
  const socket = path('through.sock');
  const plugin = await PeerServer.start(
    t,
    'nbdkit',
    ['-f', '-U', socket, 'nbd', `uri=${server.uri}`, 'shared=true'],
    socket,
  );
  const through = `nbd+unix:///?socket=${socket}`;
  const out = path('through.raw');
  await mustRun(t, 'nbdcopy', ['--connections=2', through, out]);
  t.true(readFileSync(out).equals(readFileSync(source)));
  await mustRun(t, 'qemu-io', [
    '-f',
    'raw',
    '-c',
    'write -P 3 1M 64k',
    '-c',
    'write -z 2M 64k',
    '-c',
    'flush',
    through,
  ]);
  await plugin.stop();
  await server.close();
  const disk = readFileSync(server.file);
  t.true(disk.subarray(MIB, MIB + 65_536).every((byte) => byte === 3));
  t.true(disk.subarray(2 * MIB, 2 * MIB + 65_536).every((byte) => byte === 0));
});
