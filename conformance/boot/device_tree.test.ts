import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { planBoot } from '../../emulator/machine/boot.ts';
import { buildDeviceTree, setChosen } from '../../emulator/machine/device_tree.ts';
import { decodeFdt, encodeFdt, type FdtNode } from '../../protocols/fdt/mod.ts';

const QEMU = 'qemu-system-riscv64';
const MIB = 1024 * 1024;

function present(t: ExecutionContext, program: string): boolean {
  if (spawnSync(program, ['--version']).status === 0) return true;
  t.log(`SKIPPED: ${program} is not installed`);
  t.pass();
  return false;
}

function temporary(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-dtb-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function qemuTree(t: ExecutionContext, machine: string, args: string[]): FdtNode {
  const file = join(temporary(t), 'qemu.dtb');
  const run = spawnSync(QEMU, ['-M', `${machine},dumpdtb=${file}`, ...args], { encoding: 'utf8', timeout: 60_000 });
  t.is(run.status, 0, run.stderr);
  return decodeFdt(readFileSync(file)).root;
}

/** Every property as `path:name` to its bytes in hex, phandles replaced by the paths that they mean. */
function flatten(root: FdtNode): Map<string, string> {
  const byPhandle = new Map<number, string>();
  const walk = (node: FdtNode, path: string, visit: (node: FdtNode, path: string) => void): void => {
    visit(node, path);
    for (const child of node.children) walk(child, `${path === '/' ? '' : path}/${child.name}`, visit);
  };
  walk(root, '/', (node, path) => {
    const phandle = node.getCells('phandle')?.[0];
    if (phandle !== undefined) byPhandle.set(phandle, path);
  });
  // Which cells of a property are phandles: [first, stride]
  const references: Record<string, [number, number]> = {
    'interrupt-parent': [0, 1],
    'interrupts-extended': [0, 2],
    'interrupt-map': [4, 6],
    cpu: [0, 1],
    regmap: [0, 1],
  };
  const flat = new Map<string, string>();
  walk(root, '/', (node, path) => {
    flat.set(path, '');
    for (const [name, value] of node.properties) {
      if (name === 'phandle') continue;
      const reference = references[name];
      const cells = reference === undefined ? undefined : node.getCells(name);
      let text = Buffer.from(value).toString('hex');
      if (cells !== undefined && reference !== undefined) {
        const [first, stride] = reference;
        text = cells.map((cell, index) => (index % stride === first ? byPhandle.get(cell) : cell)).join(' ');
      }
      flat.set(`${path}:${name}`, text);
    }
  });
  return flat;
}

/** What may differ from QEMU 7.2, and why: docs/devices/device_tree.md */
const DIFFERENCES = [
  // Not built: no flash, no platform bus, no performance counters of the firmware
  /^\/flash@20000000(:|$)/,
  /^\/platform-bus@4000000(:|$)/,
  /^\/pmu(:|$)/,
  // Another hart
  /^\/cpus\/cpu@\d:(riscv,isa|mmu-type|riscv,isa-base|riscv,isa-extensions|riscv,cbo[mpz]-block-size)$/,
  // Sources without number 0, as later QEMU counts them
  /^\/soc\/plic@c000000:riscv,ndev$/,
  // Random
  /^\/chosen:rng-seed$/,
];

for (const [name, machine, harts, aclint] of [
  ['-smp 2', 'virt', 2, false],
  ['-smp 8', 'virt', 8, false],
  ['aclint=on -smp 2', 'virt,aclint=on', 2, true],
] as const) {
  test(`buildDeviceTree() agrees with QEMU, ${name}`, (t) => {
    if (!present(t, QEMU)) return;
    const theirs = flatten(qemuTree(t, machine, ['-smp', `${harts}`, '-m', '512M']));
    const ours = flatten(buildDeviceTree({ ramBytes: 512 * MIB, harts, aclint }));
    const documented = (key: string) => DIFFERENCES.some((pattern) => pattern.test(key));
    const differing: string[] = [];
    for (const key of new Set([...theirs.keys(), ...ours.keys()])) {
      if (theirs.get(key) !== ours.get(key) && !documented(key)) {
        differing.push(`${key}: QEMU ${theirs.get(key)}, ours ${ours.get(key)}`);
      }
    }
    t.deepEqual(differing, []);
    // The comparison compared something
    t.true(ours.size > 100, `${ours.size}`);
  });
}

test('encodeFdt() writes what dtc reads without an error, and decodeFdt() what dtc writes', (t) => {
  if (!present(t, 'dtc')) return;
  const folder = temporary(t);
  const root = buildDeviceTree({ ramBytes: 256 * MIB, harts: 2 });
  setChosen(root, { bootargs: 'console=ttyS0', initrd: { start: 0x8820_0000, end: 0x8830_0000 } });
  const ours = join(folder, 'ours.dtb');
  const source = join(folder, 'ours.dts');
  const theirs = join(folder, 'theirs.dtb');
  writeFileSync(ours, encodeFdt({ root, reservations: [{ address: 0x8000_0000n, size: 0x1000n }], bootCpu: 0 }));
  const decompiled = spawnSync('dtc', ['-I', 'dtb', '-O', 'dts', '-o', source, ours], { encoding: 'utf8' });
  t.is(decompiled.status, 0, decompiled.stderr);
  // The same notice that dtc has for QEMU's own tree; nothing else
  const notices = decompiled.stderr
    .split('\n')
    .filter((line) => line !== '' && !line.includes('Missing #address-cells in interrupt provider'));
  t.deepEqual(notices, []);
  t.is(spawnSync('dtc', ['-q', '-I', 'dts', '-O', 'dtb', '-o', theirs, source]).status, 0);
  const back = decodeFdt(readFileSync(theirs));
  t.deepEqual([...flatten(back.root)].sort(), [...flatten(root)].sort());
  t.deepEqual(back.reservations, [{ address: 0x8000_0000n, size: 0x1000n }]);
});

/** `info roms` and the reset vector of a QEMU that has not started to run */
function qemuPlacement(args: string[]): { roms: Map<string, number>; vector: bigint[] } {
  const input = 'info roms\nxp /11gx 0x1000\nquit\n';
  const run = spawnSync(
    QEMU,
    ['-M', 'virt', '-S', '-display', 'none', '-serial', 'none', '-monitor', 'stdio', ...args],
    { input, encoding: 'utf8', timeout: 60_000 },
  );
  const roms = new Map<string, number>();
  for (const match of run.stdout.matchAll(/addr=([0-9a-f]+) size=0x[0-9a-f]+ mem=\w+ name="([^"]+)"/g)) {
    roms.set(match[2]!.replace(/^.*\//, ''), Number.parseInt(match[1]!, 16));
  }
  const vector: bigint[] = [];
  for (const line of run.stdout.matchAll(/^[0-9a-f]{16}: ((?:0x[0-9a-f]{16} ?)+)/gm)) {
    for (const word of line[1]!.trim().split(' ')) vector.push(BigInt(word));
  }
  return { roms, vector };
}

for (const ramMib of [64, 256, 1024, 2048]) {
  test(`planBoot() places kernel, initrd, device tree and reset vector as QEMU does, -m ${ramMib}`, (t) => {
    if (!present(t, QEMU)) return;
    const folder = temporary(t);
    const kernel = new Uint8Array(0x102).fill(0x13);
    const initrd = new Uint8Array(100_000).fill(1);
    const bios = new Uint8Array(0x1c280).fill(0x13);
    const file = (name: string, bytes: Uint8Array) => {
      writeFileSync(join(folder, name), bytes);
      return join(folder, name);
    };
    for (const firmware of [undefined, bios]) {
      const { roms, vector } = qemuPlacement([
        ...['-m', `${ramMib}M`, '-kernel', file('kernel.bin', kernel), '-initrd', file('initrd.bin', initrd)],
        ...['-bios', firmware === undefined ? 'none' : file('bios.bin', firmware)],
      ]);
      const plan = planBoot({ ramBytes: ramMib * MIB, harts: 1, bios: firmware ?? 'none', kernel, initrd });
      t.is(plan.kernel?.address, roms.get('kernel.bin'));
      t.is(plan.initrd?.address, roms.get('initrd.bin'));
      t.is(plan.dtb.address, roms.get('fdt')!);
      t.is(vector.length, 11);
      const rom = new DataView(plan.rom.buffer, plan.rom.byteOffset);
      t.deepEqual(
        vector,
        vector.map((_, index) => rom.getBigUint64(index * 8, true)),
      );
    }
  });
}

test('OpenSBI finds console, harts, timer, interrupts and reset in our tree', async (t) => {
  if (!present(t, QEMU)) return;
  const folder = temporary(t);
  const root = buildDeviceTree({ ramBytes: 256 * MIB, harts: 2 });
  const dtb = join(folder, 'ours.dtb');
  const kernel = join(folder, 'kernel.bin');
  writeFileSync(dtb, encodeFdt({ root, reservations: [], bootCpu: 0 }));
  // j . : the banner is all that we want
  writeFileSync(kernel, Uint8Array.of(0x6f, 0, 0, 0));
  const run = spawn(QEMU, [
    ...['-M', 'virt', '-smp', '2', '-m', '256M', '-display', 'none', '-monitor', 'none', '-serial', 'stdio'],
    ...['-dtb', dtb, '-kernel', kernel],
  ]);
  t.teardown(() => run.kill());
  let banner = '';
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no banner within 60 s: ${banner}`)), 60_000);
    run.on('error', reject);
    run.stdout.setEncoding('utf8').on('data', (text: string) => {
      banner += text;
      if (!banner.includes('MEDELEG')) return;
      clearTimeout(timer);
      resolve();
    });
  });
  for (const [name, value] of [
    ['Platform Name', 'riscv-virtio,qemu'],
    ['Platform HART Count', '2'],
    ['Platform IPI Device', 'aclint-mswi'],
    ['Platform Timer Device', 'aclint-mtimer @ 10000000Hz'],
    ['Platform Console Device', 'uart8250'],
    ['Platform Reboot Device', 'sifive_test'],
    ['Platform Shutdown Device', 'sifive_test'],
    ['Domain0 Next Address', '0x0000000080200000'],
  ]) {
    t.regex(banner, new RegExp(`${name}\\s*: ${value}`));
  }
});
