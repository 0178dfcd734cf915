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
  ...['009', '010', '012', '032', '047', '050', '053', '054', '072'],
  ...['090', '105', '107', '111', '170', '187'],
];
/** The others that pass; what does not, and why: docs/disk_images.md */
const MORE = [
  ...['036', '046', '069'],
  ...['001', '002', '003', '004', '005', '008', '011', '014', '015', '017', '018', '019'],
  ...['021', '022', '023', '024', '025', '026', '027', '029', '033', '034', '035', '037'],
  ...['038', '042', '043', '048', '052', '058', '062', '063', '066', '073', '079', '089'],
  ...['097', '103', '104', '115', '121', '133', '154', '159', '177', '179', '197', '215'],
  ...['226', '265', '268', '272', '279', '287', '289', '290', '292', '305', '313'],
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
