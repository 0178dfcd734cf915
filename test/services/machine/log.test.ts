import { closeSync, openSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { Machine } from '../../../emulator/machine/machine.ts';
import { firmwareElf } from '../../../guests/firmware/mod.ts';
import { logTarget } from '../../../services/machine/log_sink.ts';
import { nodePlatform } from '../../../services/machine/node_platform.ts';

test('a machine with a log writes what its harts do to the file, and all of it when it is closed', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-log-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const fd = openSync(join(folder, 'log'), 'a', 0o600);
  t.teardown(() => closeSync(fd));
  const machine = Machine.create(
    {
      ramBytes: 32 << 20,
      harts: 2,
      bios: 'none',
      kernel: firmwareElf(),
      disks: [],
      display: false,
      network: false,
      log: ['in_asm', 'int'],
    },
    nodePlatform({ log: logTarget(fd) }),
  );
  let output = '';
  const ready = new Promise<void>((resolve) => {
    machine.serial.output.subscribe((bytes) => {
      output += Buffer.from(bytes).toString('latin1');
      if (output.includes('ready')) resolve();
    });
  });
  machine.start();
  await ready;
  // At its prompt the firmware sleeps from timer to timer; a hart that sleeps has written what it gathered
  const deadline = performance.now() + 20_000;
  while (performance.now() < deadline && !(await readFile(join(folder, 'log'), 'latin1')).includes('m_timer')) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await machine.close();
  const log = await readFile(join(folder, 'log'), 'latin1');
  t.regex(log, /IN: \nPriv: 3; Virt: 0\n0x0000000000001000: {2}00000297 {10}auipc {19}t0,0x0\n/);
  t.regex(log, /^riscv_cpu_do_interrupt: hart:0, async:1, cause:0{15}7, .*desc=m_timer$/m);
  t.true(log.endsWith('\n'));
});
