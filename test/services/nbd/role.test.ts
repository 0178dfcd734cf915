import { mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { duplexPair } from 'node:stream';
import test from 'ava';
import { type DiskRoleOptions, diskRole, NbdBlockBackend, NbdClient } from '../../../services/nbd/mod.ts';
import { RpcPeer } from '../../../services/shared/rpc.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-role-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
let count = 0;
const newPath = (name: string): string => join(directory, `${count++}-${name}`);

/** The role with a link for each disk, as the supervisor would start it. */
function started(options: DiskRoleOptions) {
  const [control, far] = duplexPair();
  const links: Record<string, ReturnType<typeof duplexPair>[0]> = {};
  const guest = new Map<string, ReturnType<typeof duplexPair>[0]>();
  for (const { id } of options.images) {
    const [near, other] = duplexPair();
    guest.set(id, near);
    links[`disk:${id}`] = other;
  }
  const over = diskRole({ control: far, ...links }, options);
  return { rpc: new RpcPeer(control, { name: 'disk' }), guest, over };
}

test('the guest writes, and an outside reader sees it, read-only', async (t) => {
  const { rpc, guest, over } = started({ images: [{ id: 'hd0', memoryBytes: 1 << 20, format: 'raw' }] });
  const client = await NbdClient.connect(guest.get('hd0')!);
  const disk = new NbdBlockBackend(client);
  await disk.write(4096, new Uint8Array(512).fill(0x42));

  const listen = { type: 'unix', path: newPath('nbd.sock') };
  const { uri } = (await rpc.call('nbd-server-start', { listen })) as { uri: string };
  t.is(uri, `nbd+unix:///?socket=${listen.path}`);
  const added = (await rpc.call('nbd-server-add', { disk: 'hd0' })) as { uri: string };
  t.is(added.uri, `nbd+unix:///hd0?socket=${listen.path}`);
  const outside = await NbdClient.connect(added.uri);
  t.true(outside.readOnly);
  const into = new Uint8Array(512);
  await outside.read(4096, into);
  t.true(into.every((byte) => byte === 0x42));
  await t.throwsAsync(outside.write(0, into), { code: 'EPERM' });

  t.deepEqual(await rpc.call('query-disks'), [
    { id: 'hd0', format: 'raw', sizeBytes: 1 << 20, readOnly: false, attached: true },
  ]);
  await rpc.call('nbd-server-add', { disk: 'hd0', name: 'rw', writable: true });
  const writer = await NbdClient.connect(`nbd+unix:///rw?socket=${listen.path}`);
  await writer.write(0, Uint8Array.of(7));
  await disk.read(0, into);
  t.is(into[0], 7);

  await rpc.call('nbd-server-remove', { name: 'hd0' });
  await outside.closed;
  await rpc.call('nbd-server-stop');
  await writer.closed;
  await disk.read(0, into);
  await client.close();
  rpc.close();
  await over;
});

test('images come by path and by descriptor, and are written when the role has ended', async (t) => {
  const [a, b] = [newPath('a.raw'), newPath('b.raw')];
  writeFileSync(a, Buffer.alloc(8192));
  writeFileSync(b, Buffer.alloc(8192, 9));
  const { rpc, guest, over } = started({
    images: [
      { id: 'a', path: a, format: 'raw' },
      { id: 'b', fd: openSync(b, 'r'), format: 'raw', readOnly: true },
    ],
  });
  const first = await NbdClient.connect(guest.get('a')!);
  const second = await NbdClient.connect(guest.get('b')!);
  t.true(second.readOnly);
  await first.write(0, new Uint8Array(100).fill(5));
  await rpc.call('flush', { disk: 'a' });
  await rpc.call('flush');
  await first.close();
  await second.close();
  rpc.close();
  await over;
  t.is(readFileSync(a)[99], 5);
});

test('a disk changes hands between two roles', async (t) => {
  const path = newPath('move.raw');
  writeFileSync(path, Buffer.alloc(4096));
  const source = started({ images: [{ id: 'd', path, format: 'raw' }] });
  const from = await NbdClient.connect(source.guest.get('d')!);
  await from.write(0, Uint8Array.of(1));
  const target = started({ images: [{ id: 'd', path, format: 'raw', inactive: true }] });
  const to = await NbdClient.connect(target.guest.get('d')!);
  await t.throwsAsync(to.write(0, Uint8Array.of(2)), { code: 'EPERM' });
  await t.throwsAsync(target.rpc.call('disk-activate', { disk: 'd' }), { code: 'EPERM' });
  await source.rpc.call('disk-inactivate', { disk: 'd' });
  await target.rpc.call('disk-activate', { disk: 'd' });
  await to.write(1, Uint8Array.of(2));
  await t.throwsAsync(from.write(0, Uint8Array.of(3)), { code: 'EPERM' });
  await Promise.all([from.close(), to.close()]);
  source.rpc.close();
  target.rpc.close();
  await Promise.all([source.over, target.over]);
  t.deepEqual([...readFileSync(path).subarray(0, 2)], [1, 2]);
});

for (const [what, method, params, code] of [
  ['an export before the server runs', 'nbd-server-add', { disk: 'hd0' }, 'ERR_NBD_STOPPED'],
  ['a listen address without a type', 'nbd-server-start', { listen: {} }, 'ERR_PARAMETER'],
  ['a listen address of another type', 'nbd-server-start', { listen: { type: 'fd' } }, 'ERR_PARAMETER'],
  ['a port above 65535', 'nbd-server-start', { listen: { type: 'inet', port: 70_000 } }, 'ERR_PARAMETER'],
  ['no parameters', 'nbd-server-start', undefined, 'ERR_PARAMETER'],
  ['an unknown disk', 'flush', { disk: 'nope' }, 'ERR_DISK_UNKNOWN'],
  ['a disk that is a number', 'disk-activate', { disk: 7 }, 'ERR_PARAMETER'],
] as const) {
  test(`the role refuses ${what}`, async (t) => {
    const { rpc, over } = started({ images: [{ id: 'hd0', memoryBytes: 4096, format: 'raw' }] });
    await t.throwsAsync(rpc.call(method, params), { code });
    rpc.close();
    await over;
  });
}

test('the role refuses two servers, one name twice, and a writable export of a read-only disk', async (t) => {
  const { rpc, over } = started({ images: [{ id: 'ro', memoryBytes: 4096, format: 'raw', readOnly: true }] });
  const listen = { type: 'inet', host: '127.0.0.1', port: 0 };
  const { uri } = (await rpc.call('nbd-server-start', { listen })) as { uri: string };
  t.regex(uri, /^nbd:\/\/127\.0\.0\.1:[0-9]+\/$/);
  await t.throwsAsync(rpc.call('nbd-server-start', { listen }), { code: 'ERR_NBD_RUNNING' });
  await t.throwsAsync(rpc.call('nbd-server-add', { disk: 'ro', writable: true }), { code: 'ERR_DISK_READ_ONLY' });
  await t.throwsAsync(rpc.call('nbd-server-add', { disk: 'ro', writable: 'yes' }), { code: 'ERR_PARAMETER' });
  await rpc.call('nbd-server-add', { disk: 'ro' });
  await t.throwsAsync(rpc.call('nbd-server-add', { disk: 'ro' }));
  await t.throwsAsync(rpc.call('nbd-server-remove', { name: 'other' }), { code: 'ERR_NBD_EXPORT' });
  rpc.close();
  await over;
});

for (const [what, image] of [
  ['no image', { id: 'x', format: 'raw' }],
  ['two images', { id: 'x', format: 'raw', path: '/dev/null', memoryBytes: 1 }],
  ['another format', { id: 'x', format: 'qcow2', memoryBytes: 1 }],
  ['a missing file', { id: 'x', format: 'raw', path: '/nonexistent/image' }],
  ['a size that is none', { id: 'x', format: 'raw', memoryBytes: -1 }],
] as const) {
  test(`the role does not start with ${what}`, async (t) => {
    const { over } = started({ images: [image] } as unknown as DiskRoleOptions);
    await t.throwsAsync(over);
  });
}
