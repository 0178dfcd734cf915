import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { fillRandom } from '../../../services/machine/node_platform.ts';

const folder = mkdtempSync(join(tmpdir(), 'caisson-random-'));
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

test('fillRandom() fills everything, also where the kernel’s device is missing, a file, or ends at once', (t) => {
  const file = join(folder, 'file');
  writeFileSync(file, new Uint8Array(64));
  for (const device of [undefined, join(folder, 'none'), file, '/dev/null', folder]) {
    const [one, other] = [new Uint8Array(64), new Uint8Array(64)];
    fillRandom(one, device);
    fillRandom(other, device);
    t.notDeepEqual(one, other, device);
    // 2^-128 by chance
    t.true(one.subarray(0, 16).some((byte) => byte !== 0) && one.subarray(48).some((byte) => byte !== 0), device);
  }
});
