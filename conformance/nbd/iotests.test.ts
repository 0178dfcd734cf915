// QEMU's own block tests (qemu-iotests) of raw disks over NBD, with our server in the place of qemu-nbd.
import test from 'ava';
import { Iotests } from './iotests.ts';
import { hasPrograms, scratch } from './peers.ts';

const { path, remove } = scratch();
test.after.always(remove);

/** The shell tests of raw over NBD that need no guest: all of them */
const NAMES = [
  ...['001', '002', '003', '004', '005', '008', '009', '010', '011', '021', '032', '033'],
  ...['077', '083', '104', '123', '197', '215', '241', '259'],
];

test('qemu-iotests, raw over NBD, with our server as qemu-nbd', async (t) => {
  t.timeout(900_000);
  if (!hasPrograms(t, 'qemu-io', 'qemu-img', 'qemu-nbd', 'qemu-storage-daemon', 'qemu-system-riscv64', 'tar')) return;
  const iotests = await Iotests.fetch(t, path);
  if (iotests === undefined) {
    t.pass();
    return;
  }
  const { results, said } = await iotests.run(['-nbd', '-raw'], NAMES, ['qemu-nbd'], 600_000);
  t.log([...results].map(([name, result]) => `${name} ${result}`).join(', '));
  t.deepEqual(
    NAMES.filter((name) => results.get(name) !== 'pass'),
    [],
    said,
  );
});
