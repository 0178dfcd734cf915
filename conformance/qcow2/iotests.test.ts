// QEMU's own block tests (qemu-iotests) of qcow2, with `caisson img` in the place of qemu-img and `caisson nbd` in that of
// qemu-nbd; qemu-io is QEMU's. CAISSON_IOTESTS=all runs all that pass, for as long as that takes.
import process from 'node:process';
import test from 'ava';
import { Iotests } from '../nbd/iotests.ts';
import { hasPrograms, scratch } from '../nbd/peers.ts';

const { path, remove } = scratch();
test.after.always(remove);

/** Each command of `caisson img` at least once, in little time: create, check, info, convert, compare, map, … */
const QUICK = [
  ...['009', '010', '012', '029', '032', '036', '042', '046', '047', '048', '050', '053'],
  ...['054', '062', '069', '072', '090', '105', '107', '170', '187'],
];
/** The others that pass; what does not, and why: docs/disk_images.md */
const MORE = [
  ...['001', '002', '003', '004', '005', '008', '011', '015', '017', '018', '021', '022'],
  ...['025', '026', '027', '033', '034', '035', '037', '038', '043', '052', '058', '063'],
  ...['066', '073', '103', '104', '133', '159', '177', '179', '197'],
];

test('qemu-iotests, qcow2, with caisson img as qemu-img', async (t) => {
  t.timeout(7_200_000);
  if (!hasPrograms(t, 'qemu-io', 'qemu-img', 'qemu-nbd', 'qemu-storage-daemon', 'qemu-system-riscv64', 'tar')) return;
  const iotests = await Iotests.fetch(t, path);
  if (iotests === undefined) {
    t.pass();
    return;
  }
  const all = process.env.CAISSON_IOTESTS === 'all';
  const names = all ? [...QUICK, ...MORE] : QUICK;
  const { results, said } = await iotests.run(['-qcow2'], names, ['qemu-img', 'qemu-nbd'], 7_000_000);
  t.log([...results].map(([name, result]) => `${name} ${result}`).join(', '));
  t.deepEqual(
    names.filter((name) => results.get(name) !== 'pass'),
    [],
    said,
  );
});
