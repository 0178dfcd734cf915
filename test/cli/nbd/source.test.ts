import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { NbdArguments } from '../../../cli/nbd/arguments.ts';
import { openSource } from '../../../cli/nbd/source.ts';
import { createQcow2 } from '../../../services/nbd/mod.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-nbd-source-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const at = (name: string): string => join(directory, name);

test('Q10 names inside a served image lead below --backing-root, and nowhere without it', async (t) => {
  writeFileSync(at('base.raw'), new Uint8Array(1 << 20).fill(7));
  await createQcow2(at('top.qcow2'), { sizeBytes: 1 << 20, backing: { file: 'base.raw', format: 'raw' } });
  await createQcow2(at('out.qcow2'), { sizeBytes: 1 << 20, backing: { file: '/etc/hostname', format: 'raw' } });
  const open = (...words: string[]) => openSource(new NbdArguments(words), 1);
  const { image } = await open('-f', 'qcow2', `--backing-root=${directory}`, at('top.qcow2'));
  const into = new Uint8Array(512);
  await image.read(0, into);
  await image.close();
  t.true(into.every((byte) => byte === 7));
  // Also as qemu-nbd, which would follow any name: who serves an image need not trust whoever made it.
  for (const words of [['-f', 'qcow2'], ['--qemu-nbd']]) {
    await t.throwsAsync(open(...words, at('top.qcow2')), { message: /and none was given/ });
  }
  await t.throwsAsync(open('-f', 'qcow2', `--backing-root=${directory}`, at('out.qcow2')), {
    message: /is not inside the folder that is allowed/,
  });
  const both = open('-f', 'qcow2', `--backing-root=${directory}`, `--backing=raw:${at('base.raw')}`, at('top.qcow2'));
  await t.throwsAsync(both, { message: /is said already/ });
});
