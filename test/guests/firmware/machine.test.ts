import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { DEFAULT_VM_OPTIONS, type RunningVm, supervise, type VmOptions } from '../../../services/supervisor/mod.ts';

// The firmware on our machine, all roles in processes: what it found under QEMU, it finds here.

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** A guest's serial line as a conversation. */
class Serial {
  readonly #vm: RunningVm;
  #output = '';

  constructor(vm: RunningVm) {
    this.#vm = vm;
    vm.serial.on('data', (chunk: Buffer) => (this.#output += chunk.toString('latin1')));
  }

  async expect(pattern: RegExp, timeoutMs = 60_000): Promise<RegExpExecArray> {
    for (const deadline = Date.now() + timeoutMs; ; await pause(20)) {
      const match = pattern.exec(this.#output);
      if (match !== null) {
        this.#output = this.#output.slice(match.index + match[0].length);
        return match;
      }
      if (Date.now() > deadline) throw new Error(`The guest did not say ${pattern}: …${this.#output.slice(-500)}`);
    }
  }

  async ask(line: string, pattern: RegExp): Promise<RegExpExecArray> {
    this.#vm.serial.write(`${line}\r`);
    return await this.expect(pattern);
  }
}

async function start(t: ExecutionContext, options: Partial<VmOptions>): Promise<{ vm: RunningVm; serial: Serial }> {
  const vm = await supervise({
    ...DEFAULT_VM_OPTIONS,
    name: 'firmware',
    ramBytes: 64 << 20,
    bios: 'none',
    kernel: { builtin: 'firmware' },
    display: false,
    ...options,
  });
  t.teardown(() => vm.close());
  const serial = new Serial(vm);
  await serial.expect(/ready/);
  return { vm, serial };
}

for (const bus of ['virtio-pci', 'virtio-mmio'] as const) {
  test.serial(`firmware loses no store and no sector on a disk on ${bus}, and its exit status comes out`, async (t) => {
    t.timeout(120_000);
    const folder = mkdtempSync(join(tmpdir(), 'caisson-firmware-'));
    t.teardown(() => rmSync(folder, { recursive: true }));
    const file = join(folder, 'disk.img');
    writeFileSync(file, '');
    truncateSync(file, 1 << 20);
    const disk = { id: 'disk0', file, format: 'raw', readOnly: false, snapshot: false, bus } as const;
    const { vm, serial } = await start(t, { harts: 2, disks: [disk] });
    // On a busy host the second hart's thread may begin later than the shell
    for (let asked = 0; ; asked++) {
      const [, harts] = await serial.ask('info', /ram=64 MiB harts=(\d) .*time-bad=0/);
      if (harts === '2') break;
      t.true(asked < 100, 'the second hart starts');
      await pause(100);
    }
    await serial.ask('disk load 200', /disk load: 200/);
    await serial.ask('dirty 20', /dirty: 20 MiB\/s/);
    await pause(1500);
    await serial.ask('stop', /stop: done/);
    const [, sectors] = await serial.ask('disk verify', /disk verify: OK sectors=(\d+) bad=0 writes=\d+ errors=0/);
    t.true(Number(sectors) > 20, `${sectors} sectors`);
    const [, generation] = await serial.ask('checksum', /checksum: OK generation=(\d+) .*bad-words=0 online-bad=0/);
    t.true(Number(generation) > 1000, `generation ${generation}`);
    await serial.ask('spoil 5', /spoil: one bit of page 5/);
    await serial.ask('checksum', /checksum: BAD .*bad-pages=1 bad-words=1/);
    await serial.ask('disk write 7', /disk write 7: write \d+/);
    await serial.ask('disk flush', /disk flush: OK/);
    await serial.ask('info', /time-bad=0/);
    vm.serial.write('poweroff 9\r');
    t.is((await vm.exit).exitCode, 9);
    const sector = readFileSync(file).subarray(7 * 512, 8 * 512);
    t.is(sector.toString('latin1', 0, 8), 'caisson!');
    t.is(sector.readBigUInt64LE(8), 7n);
  });
}

test.serial('firmware finds display and inputs, and a reboot starts it afresh', async (t) => {
  t.timeout(120_000);
  const { vm, serial } = await start(t, { display: true });
  await serial.ask('info', /inputs=2 display=\d+x\d+/);
  await serial.ask('draw', /draw: done/);
  await serial.ask('count 1000', /count: generation=1\d\d\d /);
  await serial.ask('reboot', /caisson firmware: 64 MiB[\s\S]*ready/);
  await serial.ask('checksum', /checksum: OK generation=\d{1,2} /);
  vm.serial.write('poweroff\r');
  t.is((await vm.exit).exitCode, 0);
});
