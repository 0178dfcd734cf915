import { mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { duplexPair } from 'node:stream';
import test from 'ava';
import { createQcow2, openImage } from '../../../../services/nbd/images/mod.ts';
import { type DiskRoleOptions, diskRole, NbdBlockBackend, NbdClient } from '../../../../services/nbd/mod.ts';
import { RpcPeer } from '../../../../services/shared/rpc.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-qcow2-role-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

function started(options: DiskRoleOptions) {
  const [control, far] = duplexPair();
  const [guest, link] = duplexPair();
  const over = diskRole({ control: far, 'disk:d': link }, options);
  return { rpc: new RpcPeer(control, { name: 'disk' }), guest, over };
}

test('a guest writes into a qcow2 disk over a backing file, and finds it again', async (t) => {
  const base = join(directory, 'base.raw');
  const path = join(directory, 'top.qcow2');
  writeFileSync(base, Buffer.alloc(1 << 20, 0x33));
  await createQcow2(path, { sizeBytes: 1 << 20, backing: { file: '/etc/hostname', format: 'raw' } });
  for (const expected of [0x33, 0x44]) {
    const { rpc, guest, over } = started({
      images: [{ id: 'd', fd: openSync(path, 'r+'), format: 'qcow2', backing: { path: base, format: 'raw' } }],
    });
    const client = await NbdClient.connect(guest);
    const disk = new NbdBlockBackend(client);
    const into = new Uint8Array(4096);
    await disk.read(65_536, into);
    t.true(into.every((byte) => byte === expected));
    await disk.write(65_536, new Uint8Array(4096).fill(0x44));
    await disk.flush();
    t.like(await rpc.call('query-disks'), [{ id: 'd', format: 'qcow2', sizeBytes: 1 << 20 }]);
    await client.close();
    rpc.close();
    await over;
  }
});

test('Q10 openImage() opens what the caller names, and nothing else', async (t) => {
  const base = join(directory, 'named.raw');
  const path = join(directory, 'named.qcow2');
  writeFileSync(base, Buffer.alloc(4096));
  await createQcow2(path, { sizeBytes: 4096, backing: { file: base, format: 'raw' } });
  const readOnly = { readOnly: true };
  await t.throwsAsync(openImage({ path, format: 'qcow2' }, readOnly), { message: /none was given/ });
  await t.throwsAsync(openImage({ path: base, format: 'qcow2' }, readOnly), { message: /magic/ });
  await t.throwsAsync(openImage({ path: base, format: 'raw', backing: { path: base, format: 'raw' } }, readOnly), {
    message: /nothing under/,
  });
  await t.throwsAsync(openImage({ path: base, format: 'vdi' as 'raw' }, readOnly), {
    message: /expected raw or qcow2 or vpc/,
  });
  let deep: Parameters<typeof openImage>[0] = { path: base, format: 'raw' };
  for (let depth = 0; depth < 20; depth++) deep = { path, format: 'qcow2', backing: deep };
  await t.throwsAsync(openImage(deep, readOnly), { message: /more than 16/ });
  await (await openImage({ path, format: 'qcow2', backing: { path: base, format: 'raw' } }, readOnly)).close();
});

test('Q18 a second writer is refused', async (t) => {
  const path = join(directory, 'locked.qcow2');
  await createQcow2(path, { sizeBytes: 4096 });
  const first = await openImage({ path, format: 'qcow2' }, { readOnly: false });
  await t.throwsAsync(openImage({ path, format: 'qcow2' }, { readOnly: false }), { code: 'EPERM' });
  await first.close();
  await (await openImage({ path, format: 'qcow2' }, { readOnly: false })).close();
});
