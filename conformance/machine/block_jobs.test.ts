import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createQcow2 } from '../../services/nbd/images/mod.ts';
import { QmpClient } from '../../services/shared/mod.ts';
import { hasPrograms, mustRun } from '../nbd/peers.ts';
import { Command, eventually, scratchFolder } from './guest.ts';

// Block jobs on the disk of a guest that writes, with QEMU's words, judged by qemu-img and by the guest itself.

const DISK_BYTES = 32 << 20;

interface Running {
  readonly folder: string;
  readonly qmp: QmpClient;
  ask(line: string, answer: RegExp): Promise<void>;
  /** The guest powers off; its status has to be 0 */
  end(): Promise<void>;
}

/** Our firmware under load on its disk: random sectors, each with its number and a generation. */
async function underLoad(t: ExecutionContext, drive: (folder: string) => Promise<readonly string[]>): Promise<Running> {
  const folder = scratchFolder(t);
  const words = ['run', '-name', 'fw', '-m', '64M', '-bios', 'none', '-kernel', 'builtin:firmware', '-nographic'];
  const command = new Command(folder, [...words, ...(await drive(folder))]);
  t.teardown(() => command.kill('SIGKILL'));
  let read = 0;
  const expect = async (answer: RegExp): Promise<void> => {
    await command.until(String(answer), () => answer.exec(command.stdout.slice(read)), 90_000);
    read = command.stdout.length;
  };
  await expect(/ready/);
  const ask = async (line: string, answer: RegExp): Promise<void> => {
    command.write(`${line}\r`);
    await expect(answer);
  };
  await ask('disk load 300', /disk load: 300/);
  const qmp = await QmpClient.connect(join(folder, 'caisson', 'fw', 'qmp.sock'), { timeoutMs: 60_000 });
  t.teardown(() => qmp.close());
  return {
    folder,
    qmp,
    ask,
    end: async () => {
      await ask('stop', /stop: done/);
      await ask('disk verify', /disk verify: OK sectors=\d+ bad=0 writes=\d+ errors=0/);
      command.write('poweroff\r');
      t.is((await command.exit).status, 0, command.stderr);
    },
  };
}

async function untilJob(qmp: QmpClient, what: 'ready' | 'gone'): Promise<void> {
  await eventually(`the job to be ${what}`, async () => {
    const jobs = await qmp.execute('query-block-jobs');
    return what === 'gone' ? jobs.length === 0 : jobs[0]?.ready === true;
  });
}

async function cleanQcow2(t: ExecutionContext, path: string): Promise<void> {
  const report = JSON.parse(await mustRun(t, 'qemu-img', ['check', '-f', 'qcow2', '--output=json', path]));
  t.is(report.corruptions ?? 0, 0);
  t.is(report.leaks ?? 0, 0);
}

test.serial('drive-mirror moves the disk of a writing guest into a qcow2 image', async (t) => {
  t.timeout(300_000);
  if (!hasPrograms(t, 'qemu-img')) return;
  const { folder, qmp, ask, end } = await underLoad(t, async (where) => {
    writeFileSync(join(where, 'disk.raw'), new Uint8Array(DISK_BYTES));
    return ['-drive', `file=${join(where, 'disk.raw')},format=raw,id=d`];
  });
  const target = join(folder, 'moved.qcow2');
  await qmp.execute('drive-mirror', { device: 'd', target, format: 'qcow2', sync: 'full', 'job-id': 'move' });
  await untilJob(qmp, 'ready');
  const before = readFileSync(join(folder, 'disk.raw'));
  await qmp.execute('block-job-complete', { device: 'move' });
  await untilJob(qmp, 'gone');
  const [disk] = await qmp.execute('query-block');
  t.is(disk?.inserted?.file, target);
  t.is(disk?.inserted?.drv, 'qcow2');
  await ask('disk verify', /disk verify: /);
  await end();
  await cleanQcow2(t, target);
  t.notDeepEqual(readFileSync(target).length, 0);
  // The old image stands where the disk left it: at most writes before the move are missing in `before`.
  t.is(readFileSync(join(folder, 'disk.raw')).length, before.length);
  await t.throwsAsync(qmp.execute('query-block-jobs'), undefined, 'the machine has ended');
});

test.serial('blockdev-backup, full and by a bitmap, makes images of one moment each', async (t) => {
  t.timeout(300_000);
  if (!hasPrograms(t, 'qemu-img')) return;
  const { folder, qmp, end } = await underLoad(t, async (where) => {
    await createQcow2(join(where, 'disk.qcow2'), { sizeBytes: DISK_BYTES });
    return ['-drive', `file=${join(where, 'disk.qcow2')},format=qcow2,id=d`];
  });
  await qmp.execute('block-dirty-bitmap-add', { node: 'd', name: 'b', persistent: true });
  // While the guest stands, disk and backup can be compared.
  const full = join(folder, 'full.qcow2');
  await qmp.execute('stop');
  await qmp.execute('drive-backup', { device: 'd', target: full, format: 'qcow2', sync: 'full' });
  await untilJob(qmp, 'gone');
  await qmp.execute('block-dirty-bitmap-clear', { node: 'd', name: 'b' });
  copyFileSync(join(folder, 'disk.qcow2'), join(folder, 'at-full.qcow2'));
  await qmp.execute('cont');
  await new Promise((resolve) => setTimeout(resolve, 1500));

  // The increment is an overlay over the full backup.
  const increment = join(folder, 'increment.qcow2');
  await createQcow2(increment, { sizeBytes: DISK_BYTES });
  await qmp.execute('blockdev-add', {
    driver: 'qcow2',
    'node-name': 'inc',
    file: { driver: 'file', filename: increment },
  });
  await qmp.execute('stop');
  const flat = join(folder, 'flat.raw');
  await mustRun(t, 'nbdcopy', [`nbd+unix:///d?socket=${join(folder, 'caisson', 'fw', 'nbd.sock')}`, flat]).catch(
    () => '',
  );
  await qmp.execute('blockdev-backup', { device: 'd', target: 'inc', sync: 'incremental', bitmap: 'b' });
  await qmp.execute('cont');
  await untilJob(qmp, 'gone');
  await qmp.execute('blockdev-del', { 'node-name': 'inc' });
  await end();
  await cleanQcow2(t, full);
  await cleanQcow2(t, increment);
  await cleanQcow2(t, join(folder, 'disk.qcow2'));
  await mustRun(t, 'qemu-img', ['compare', '-U', '-f', 'qcow2', '-F', 'qcow2', full, join(folder, 'at-full.qcow2')]);
  await mustRun(t, 'qemu-img', ['rebase', '-u', '-f', 'qcow2', '-b', full, '-F', 'qcow2', increment]);
  await mustRun(t, 'qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', increment, flat]);
  const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', join(folder, 'disk.qcow2')]));
  t.like(info['format-specific'].data.bitmaps[0], { name: 'b', flags: ['auto'] });
});

for (const kind of ['block-commit', 'block-stream'] as const) {
  test.serial(`${kind} under a writing guest leaves one image with everything`, async (t) => {
    t.timeout(300_000);
    if (!hasPrograms(t, 'qemu-img')) return;
    const { folder, qmp, end } = await underLoad(t, async (where) => {
      await createQcow2(join(where, 'base.qcow2'), { sizeBytes: DISK_BYTES });
      const [base, top] = [join(where, 'base.qcow2'), join(where, 'top.qcow2')];
      await createQcow2(top, { sizeBytes: DISK_BYTES, backing: { file: base, format: 'qcow2' } });
      return ['-drive', `file=${top},format=qcow2,id=d,backing.driver=qcow2,backing.file.filename=${base}`];
    });
    await qmp.execute(kind, { device: 'd', 'job-id': 'j' });
    if (kind === 'block-commit') {
      await untilJob(qmp, 'ready');
      await qmp.execute('block-job-complete', { device: 'j' });
    }
    await untilJob(qmp, 'gone');
    const left = join(folder, kind === 'block-commit' ? 'base.qcow2' : 'top.qcow2');
    t.is((await qmp.execute('query-block'))[0]?.inserted?.file, left);
    await end();
    await cleanQcow2(t, left);
    const info = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--output=json', left]));
    t.is(info['backing-filename'], undefined);
  });
}

/** base ← low ← high ← top, named by -drive or by nodes; each has something of its own. */
async function fourLayers(t: ExecutionContext, where: string, nodes: boolean): Promise<readonly string[]> {
  const at = (name: string): string => join(where, `${name}.qcow2`);
  const names = ['base', 'low', 'high', 'top'];
  for (const [depth, name] of names.entries()) {
    const under = names[depth - 1];
    const backing = under === undefined ? {} : { backing: { file: at(under), format: 'qcow2' } };
    await createQcow2(at(name), { sizeBytes: DISK_BYTES, ...backing });
    const mib = 24 + depth;
    await mustRun(t, 'qemu-io', ['-f', 'qcow2', '-c', `write -P ${depth + 1} ${mib}M 3M`, at(name)]);
  }
  if (nodes) {
    const blockdevs = names.flatMap((name, depth) => {
      const backing = depth === 0 ? '' : `,backing=${names[depth - 1]}`;
      return ['-blockdev', `driver=qcow2,node-name=${name},file.driver=file,file.filename=${at(name)}${backing}`];
    });
    return [...blockdevs, '-device', 'virtio-blk-pci,drive=top'];
  }
  const under = names
    .slice(0, -1)
    .reverse()
    .map((name, depth) => {
      const prefix = 'backing.'.repeat(depth + 1);
      return `${prefix}driver=qcow2,${prefix}file.filename=${at(name)}`;
    });
  return ['-drive', `file=${at('top')},format=qcow2,id=top,${under.join(',')}`];
}

interface ChainCase {
  readonly what: string;
  readonly nodes: boolean;
  readonly command: 'block-commit' | 'block-stream';
  readonly words: (at: (name: string) => string) => Record<string, string>;
  readonly completes: boolean;
  /** The chain that is left, the upper first */
  readonly left: readonly string[];
}

const CHAIN_CASES: readonly ChainCase[] = [
  {
    what: 'block-commit without words goes from the disk down to the lowest image',
    nodes: false,
    command: 'block-commit',
    words: () => ({}),
    completes: true,
    left: ['base'],
  },
  {
    what: 'block-commit with a base stops there',
    nodes: false,
    command: 'block-commit',
    words: (at) => ({ base: at('low') }),
    completes: true,
    left: ['low', 'base'],
  },
  {
    what: 'block-commit with top and base takes what is between, by names of files',
    nodes: false,
    command: 'block-commit',
    words: (at) => ({ top: at('high'), base: at('base') }),
    completes: false,
    left: ['top', 'base'],
  },
  {
    what: 'block-commit with top-node and base-node under a read-only image changes that one',
    nodes: true,
    command: 'block-commit',
    words: () => ({ 'top-node': 'low', 'base-node': 'base' }),
    completes: false,
    left: ['top', 'high', 'base'],
  },
  {
    what: 'block-stream with a base leaves that below the disk',
    nodes: true,
    command: 'block-stream',
    words: () => ({ 'base-node': 'low' }),
    completes: false,
    left: ['top', 'low', 'base'],
  },
];

for (const { what, nodes, command, words, completes, left } of CHAIN_CASES) {
  test.serial(`${what}, under a writing guest`, async (t) => {
    t.timeout(300_000);
    if (!hasPrograms(t, 'qemu-img', 'qemu-io')) return;
    const { folder, qmp, end } = await underLoad(t, (where) => fourLayers(t, where, nodes));
    const at = (name: string): string => join(folder, `${name}.qcow2`);
    for (const [wrong, message] of [
      [{ base: '/nowhere' }, /Can't find '\/nowhere' in the backing chain/],
      [{ base: at('low'), 'base-node': 'low' }, /mutually exclusive/],
      [{ 'base-node': 'nobody' }, /'nobody' is not in the backing chain/],
    ] as const) {
      await t.throwsAsync(qmp.execute(command, { device: 'top', ...wrong }), { message });
    }
    await qmp.execute(command, { device: 'top', 'job-id': 'j', ...words(at) });
    if (completes) {
      await untilJob(qmp, 'ready');
      await qmp.execute('block-job-complete', { device: 'j' });
    }
    await untilJob(qmp, 'gone');
    t.is((await qmp.execute('query-block'))[0]?.inserted?.file, at(left[0]!));
    await end();
    const chain = JSON.parse(await mustRun(t, 'qemu-img', ['info', '--backing-chain', '--output=json', at(left[0]!)]));
    t.deepEqual(
      chain.map(({ filename }: { filename: string }) => filename),
      left.map(at),
    );
    for (const name of left) await cleanQcow2(t, at(name));
    // What each image had of its own, as the guest, which writes below 24 MiB or everywhere, has left it.
    const raw = join(folder, 'flat.raw');
    await mustRun(t, 'qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', at(left[0]!), raw]);
    const bytes = readFileSync(raw);
    const found = [24, 25, 26, 27, 28, 29].map((mib) => {
      const counts = new Map<number, number>();
      for (let sector = 0; sector < 2048; sector++) {
        const value = bytes[(mib << 20) + sector * 512 + 100]!;
        counts.set(value, (counts.get(value) ?? 0) + 1);
      }
      return [...counts].sort((a, b) => b[1] - a[1])[0]![0];
    });
    t.deepEqual(found, [1, 2, 3, 4, 4, 4]);
  });
}

test.serial('jobs on different disks run at once, and a second one on the same disk is refused', async (t) => {
  t.timeout(300_000);
  if (!hasPrograms(t, 'qemu-img')) return;
  const { folder, qmp, end } = await underLoad(t, async (where) => {
    for (const name of ['a', 'b']) await createQcow2(join(where, `${name}.qcow2`), { sizeBytes: DISK_BYTES });
    return ['a', 'b'].flatMap((name) => ['-drive', `file=${join(where, `${name}.qcow2`)},format=qcow2,id=${name}`]);
  });
  const mirror = (device: string, to: string) =>
    qmp.execute('drive-mirror', { device, target: join(folder, to), format: 'qcow2', sync: 'full', 'job-id': to });
  await mirror('a', 'a2');
  await mirror('b', 'b2');
  await t.throwsAsync(mirror('a', 'a3'), { message: /Cannot start job 'a3': another works on the disk/ });
  await t.throwsAsync(mirror('b', 'a2'), { message: /EEXIST|already in use/ });
  await eventually('both to be ready', async () => {
    const jobs = await qmp.execute('query-block-jobs');
    return jobs.length === 2 && jobs.every(({ ready }) => ready);
  });
  await qmp.execute('block-job-complete', { device: 'b2' });
  await qmp.execute('block-job-complete', { device: 'a2' });
  await untilJob(qmp, 'gone');
  const disks = await qmp.execute('query-block');
  t.deepEqual(disks.map(({ inserted }) => inserted?.file).sort(), [join(folder, 'a2'), join(folder, 'b2')]);
  await end();
  for (const name of ['a2', 'b2']) await cleanQcow2(t, join(folder, name));
});

test.serial('block_set_io_throttle holds a guest to its limits, and lets it go again', async (t) => {
  t.timeout(300_000);
  if (!hasPrograms(t, 'qemu-io')) return;
  const { folder, qmp, end } = await underLoad(t, async (where) => {
    writeFileSync(join(where, 'disk.raw'), new Uint8Array(DISK_BYTES));
    return ['-drive', `file=${join(where, 'disk.raw')},format=raw,id=d,throttling.iops-total=100000`];
  });
  const none = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };
  // An outside reader shares the limit with the guest.
  const uri = `nbd+unix:///d?socket=${join(folder, 'caisson', 'fw', 'nbd.sock')}`;
  const readMs = async (): Promise<number> => {
    const startedMs = performance.now();
    await mustRun(t, 'qemu-io', ['-r', '-f', 'raw', ...Array(40).fill(['-c', 'read 0 4k']).flat(), uri]);
    return performance.now() - startedMs;
  };
  const freeMs = await readMs();
  await qmp.execute('block_set_io_throttle', { ...none, id: 'd', iops: 20 });
  const heldMs = await readMs();
  t.true(heldMs > 1500 && heldMs > freeMs, `40 reads: ${freeMs} ms, with 20 a second ${heldMs} ms`);
  await t.throwsAsync(qmp.execute('block_set_io_throttle', { ...none, id: 'd', iops: 20, iops_rd: 5 }), {
    message: /cannot be used at the same time/,
  });
  await t.throwsAsync(qmp.execute('block_set_io_throttle', { ...none, id: 'x' }), { message: /Cannot find device/ });
  await qmp.execute('block_set_io_throttle', { ...none, id: 'd' });
  await end();
});
