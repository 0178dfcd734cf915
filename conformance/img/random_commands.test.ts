import process from 'node:process';
import test from 'ava';
import { hasPrograms } from '../nbd/peers.ts';
import { runRandomCommands } from './random_commands.ts';
import { TwoSides } from './two_sides.ts';

// Random command lines, to `caisson img --qemu-img` and to qemu-img on copies of the same files: exit statuses, outputs,
// contents and tables stay alike, also where one goes on with what the other has written.
//
//   CAISSON_IMG_SEEDS=100-900 npm run conformance -- conformance/img/random_commands.test.ts    more of them

const STEPS = 14;
const [first = 0, last = 0] = (process.env.CAISSON_IMG_SEEDS ?? '1-4').split('-').map(Number);

for (let seed = first; seed <= last; seed++) {
  test.serial(`Q17 random commands do the same as qemu-img: seed ${seed}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
    const sides = new TwoSides();
    t.teardown(() => sides.remove());
    const lines: string[] = [];
    const difference = await runRandomCommands(sides, seed, STEPS, (line) => lines.push(line));
    t.is(difference, undefined, `${lines.join('\n')}\n${JSON.stringify(difference, undefined, 2)}`);
    t.true(lines.length > 3);
  });
}
