import test from 'ava';
import { fuzz } from '../../scripts/fuzz_engine.ts';
import { FUZZ_IMAGE_TARGETS } from '../../scripts/fuzz_image_targets.ts';
import { FUZZ_TARGETS, type FuzzTarget } from '../../scripts/fuzz_targets.ts';

// The same inputs each time, few enough for every run of the tests; `npm run fuzz` goes on from there.
for (const target of [...FUZZ_TARGETS, ...FUZZ_IMAGE_TARGETS]) {
  test(`${target.name}: broken bytes are refused or read, nothing else`, (t) => {
    t.true(
      target.seeds().some((seed) => isTaken(target, seed)),
      'a seed is valid',
    );
    const { finds, refused, inputs } = fuzz(target, { seconds: 20, inputs: 3000, seed: 20_261_129 });
    t.is(finds, 0);
    t.true(refused > inputs / 10, `${refused} of ${inputs}`);
  });
}

function isTaken(target: FuzzTarget, input: Uint8Array): boolean {
  try {
    target.run(input);
    return true;
  } catch {
    return false;
  }
}

test('fuzz() finds what is no WireError, and what it was', (t) => {
  const target: FuzzTarget = {
    name: 'broken on purpose',
    seeds: () => [Uint8Array.of(1, 2, 3, 4)],
    run: (input) => {
      if (input.length > 5 && input[0] === 1) throw new RangeError('out of range');
    },
  };
  const { write } = process.stdout;
  let said = '';
  process.stdout.write = (text) => {
    said += String(text);
    return true;
  };
  let finds: number;
  try {
    ({ finds } = fuzz(target, { seconds: 5, inputs: 256, seed: 3 }));
  } finally {
    process.stdout.write = write;
  }
  t.true(finds > 0);
  t.regex(said, /FOUND in broken on purpose: RangeError: out of range[\s\S]*input \(hex\): 01/);
});
