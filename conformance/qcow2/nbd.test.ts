import { writeFileSync } from 'node:fs';
import test from 'ava';
import { createQcow2, ExportSet, NbdListener, openImage } from '../../services/nbd/mod.ts';
import { hasPrograms, mustRun, scratch } from '../nbd/peers.ts';

interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

const files = scratch();
test.after.always(() => files.remove());

test('nbdcopy fills our qcow2 image over NBD, qemu-io changes it, and qemu-img finds it clean and the same', async (t) => {
  if (!hasPrograms(t, 'nbdcopy', 'nbdinfo', 'qemu-io', 'qemu-img')) return;
  const raw = files.path('source.raw');
  const path = files.path('target.qcow2');
  const socket = files.path('nbd.sock');
  const data = new Uint8Array(24 << 20);
  for (let at = 0; at < data.length; at += 512) if ((at >> 20) % 3 !== 1) data.fill((at >> 9) & 0xff, at, at + 512);
  writeFileSync(raw, data);
  await createQcow2(path, { sizeBytes: data.length });

  const image = await openImage({ path, format: 'qcow2' }, { readOnly: false });
  const exports = new ExportSet();
  exports.add({ name: '', image, writable: true, multiConn: true });
  const listener = await NbdListener.listen({ type: 'unix', path: socket }, exports);
  const uri = `nbd+unix:///?socket=${socket}`;
  await mustRun(t, 'nbdcopy', ['--connections=4', '--requests=32', '--flush', raw, uri]);
  const changes = ['-c', 'write -P 9 1000k 300k', '-c', 'write -z -u 5M 1M', '-c', 'discard 7M 64k', '-c', 'flush'];
  await mustRun(t, 'qemu-io', ['-f', 'raw', ...changes, uri]);
  data
    .fill(9, 1000 << 10, 1300 << 10)
    .fill(0, 5 << 20, 6 << 20)
    .fill(0, 7 << 20, (7 << 20) + 65_536);
  writeFileSync(raw, data);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', uri, raw]);
  const map = JSON.parse(await mustRun(t, 'nbdinfo', ['--json', '--map', uri])) as Extent[];
  // 1 hole + 2 zero, over all that was zeroed with permission to unmap
  const unmapped = map.find(({ offset, length }) => offset <= 5 << 20 && offset + length >= 6 << 20);
  t.is(unmapped?.type, 3, JSON.stringify(map));
  await listener.close();
  await image.flush();
  await image.close();

  await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', path]);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
});
