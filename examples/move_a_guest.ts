// Starts the built-in firmware, lets it write its memory, and moves it to a second machine while it does.
// Run it from a clone: node scripts/run.mjs examples/move_a_guest.ts
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Machine } from '../library/mod.ts';

const folder = await mkdtemp(join(tmpdir(), 'caisson-example-'));
const uri = `unix:${join(folder, 'move.sock')}`;
const firmware = { bios: 'none', kernel: { builtin: 'firmware' }, ramBytes: 64 << 20, display: false } as const;

{
  await using here = await Machine.create({ ...firmware, name: 'here' });
  await using there = await Machine.create({ ...firmware, name: 'there', incoming: uri });

  await here.start();
  await expect(here, 'ready');
  await type(here, 'dirty 50\n');
  await expect(here, 'dirty: ');
  const report = await here.migrate(uri);
  console.log(`moved in ${report['total-time']} ms, the guest stood still for ${report.downtime} ms`);

  await type(there, 'stop\n');
  await expect(there, 'stop: done');
  await type(there, 'checksum\n');
  console.log(await expect(there, 'checksum: '));
}
await rm(folder, { recursive: true });
process.exit(0);

async function type(machine: Machine, text: string): Promise<void> {
  const writer = machine.serial.writable.getWriter();
  await writer.write(new TextEncoder().encode(text));
  writer.releaseLock();
}

/** Waits for a whole line of the guest that contains `expected`, and gives it. */
async function expect(machine: Machine, expected: string): Promise<string> {
  const reader = machine.serial.readable.getReader();
  const decoder = new TextDecoder();
  let text = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error(`The guest ended; it said: ${text}`);
      text += decoder.decode(value, { stream: true });
      const line = text
        .split('\n')
        .slice(0, -1)
        .find((each) => each.includes(expected));
      if (line !== undefined) return line.trim();
    }
  } finally {
    reader.releaseLock();
  }
}
