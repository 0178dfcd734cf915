import test from 'ava';
import { inTurn, type Side } from '../../../bench/machine/sides.ts';

const side = (name: Side['name']): Side => ({ name, start: () => Promise.reject(new Error('Not started here')) });

test('inTurn() lets the sides take turns and keeps their results apart, in order', async (t) => {
  const turns: string[] = [];
  const results = await inTurn([side('ours'), side('qemu')], 3, async ({ name }, round) => {
    turns.push(`${name} ${round}`);
    return `${name}${round}`;
  });
  t.deepEqual(turns, ['ours 0', 'qemu 0', 'ours 1', 'qemu 1', 'ours 2', 'qemu 2']);
  t.deepEqual(results, { ours: ['ours0', 'ours1', 'ours2'], qemu: ['qemu0', 'qemu1', 'qemu2'] });
});

test('inTurn() has no results of a side that is not there, and passes an error on', async (t) => {
  t.deepEqual((await inTurn([side('ours')], 2, async () => 1)).qemu, []);
  await t.throwsAsync(
    inTurn([side('ours')], 2, ({ start }) => start({ kernel: '', bios: 'none', ramMib: 1, harts: 1 })),
    { message: 'Not started here' },
  );
});
