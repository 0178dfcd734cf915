import test from 'ava';
import { encode } from '../../../emulator/isa/mod.ts';
import { BootError } from '../../../emulator/machine/boot_error.ts';
import type { MachineState } from '../../../emulator/machine/machine_api.ts';
import type { StateValue } from '../../../emulator/state/state.ts';
import { MachineRig } from '../../fixtures/machine_rig.ts';

const RAM = 0x8000_0000;

test.serial('The firmware boots to its prompt, echoes and answers', async (t) => {
  await using rig = new MachineRig();
  t.is(rig.machine.status, 'prelaunch');
  rig.machine.start();
  t.is(rig.machine.status, 'running');
  await rig.expect(/caisson firmware: 32 MiB of RAM/);
  await rig.expect(/info: .*harts=1 .*time-bad=0 .*display=none/);
  await rig.expect(/ready\r?\n> /);
  rig.type('nonsense\r');
  await rig.expect(/nonsense\r?\nerror: unknown command: nonsense/);
  await rig.ask('count 2000', /count: generation=2\d{3} pages=\d+ .*online-bad=0/);
  await rig.ask('checksum', /checksum: OK/);
  await rig.ask('spoil 3', /spoil: one bit of page 3/);
  await rig.ask('checksum', /checksum: BAD .*bad-words=1/);
  t.deepEqual(rig.problems, []);
});

test.serial('poweroff ends the machine with the code that the guest gave', async (t) => {
  for (const [line, reason, exitCode] of [
    ['poweroff', 'guest-shutdown', 0],
    ['poweroff 42', 'guest-panic', 42],
  ] as const) {
    await using rig = new MachineRig();
    rig.machine.start();
    await rig.expect(/ready/);
    rig.type(`${line}\r`);
    t.deepEqual(await rig.event('shutdown'), { kind: 'shutdown', reason, exitCode });
    t.is(rig.machine.status, 'shutdown');
  }
});

test.serial('reset, by the guest and by the host, starts over with fresh registers and time', async (t) => {
  await using rig = new MachineRig();
  rig.machine.start();
  await rig.expect(/ready/);
  await rig.ask('count 1000', /generation=1\d{3} /);
  rig.type('reboot\r');
  t.deepEqual(await rig.event('reset'), { kind: 'reset', reason: 'guest-reset' });
  await rig.expect(/caisson firmware:[\s\S]*ready/);
  await rig.ask('checksum', /checksum: OK generation=\d{1,2} /);
  rig.events.length = 0;
  rig.machine.reset();
  t.deepEqual(await rig.event('reset'), { kind: 'reset', reason: 'host' });
  await rig.expect(/caisson firmware:[\s\S]*time=\d{1,4} ms[\s\S]*ready/);
  t.is(rig.machine.status, 'running');
});

/** What a guest could tell a difference by */
const plain = (value: unknown): string =>
  JSON.stringify(value, (_key, item) =>
    typeof item === 'bigint' ? `${item}n` : item instanceof Uint8Array ? Buffer.from(item).toString('hex') : item,
  );

test.serial('A paused machine stands still, and goes on as if nothing had been', async (t) => {
  await using rig = new MachineRig();
  rig.machine.start();
  await rig.expect(/ready/);
  t.throws(() => rig.machine.saveState(), { message: /running/ });
  await rig.ask('dirty 20', /dirty: 20/);
  await rig.machine.pause();
  t.is(rig.machine.status, 'paused');
  const before = plain(rig.machine.saveState());
  const ram = Buffer.from(rig.machine.ram(0, rig.machine.ramBytes)).toString('latin1');
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.is(plain(rig.machine.saveState()), before);
  t.true(Buffer.from(rig.machine.ram(0, rig.machine.ramBytes)).toString('latin1') === ram, 'RAM has not changed');
  rig.machine.resume();
  await rig.ask('stop', /stop: done/);
  await rig.ask('checksum', /checksum: OK/);
  await rig.ask('info', /time-bad=0 /);
  // Pausing twice, and resuming what runs, does nothing
  await Promise.all([rig.machine.pause(), rig.machine.pause()]);
  rig.machine.resume();
  rig.machine.resume();
  await rig.ask('checksum', /checksum: OK/);
});

test.serial(
  'A state saved in the middle of work goes on in another machine, with every store and a clock that goes on',
  async (t) => {
    await using source = new MachineRig();
    source.machine.start();
    await source.expect(/ready/);
    await source.ask('dirty 50', /dirty: 50/);
    await new Promise((resolve) => setTimeout(resolve, 200));
    await source.machine.pause();
    const state = source.machine.saveState();
    await using target = new MachineRig();
    target.machine.awaitMigration();
    t.is(target.machine.status, 'inmigrate');
    const commit = target.machine.prepareState(structuredClone(state));
    target.machine.loadRam(0, source.machine.ram(0, source.machine.ramBytes));
    commit();
    t.is(plain(target.machine.saveState()), plain(state), 'what was loaded is what was saved');
    target.machine.start();
    await target.ask('stop', /stop: done/);
    const [, generation] = await target.ask('checksum', /checksum: OK generation=(\d+)/);
    // How far it came depends on the host; that it goes on from what was saved is what `checksum` proves
    t.true(Number(generation) > 0, generation);
    await target.ask('info', /time-bad=0 /);
    target.type('poweroff 7\r');
    t.is((await target.event('shutdown')).exitCode, 7);
  },
);

test.serial('States that do not fit are refused by name, and change nothing', async (t) => {
  await using rig = new MachineRig();
  const { machine } = rig;
  const state = machine.saveState();
  const before = plain(state);
  const withHart = (fields: Record<string, StateValue>): MachineState => ({
    ...state,
    devices: state.devices.map((device) =>
      device.name === 'hart0' ? { ...device, state: { ...(device.state as object), ...fields } } : device,
    ),
  });
  const hart = state.devices.find(({ name }) => name === 'hart0')!.state as Record<string, StateValue>;
  const cases: readonly (readonly [string, MachineState, RegExp])[] = [
    ['another RAM size', { ...state, config: { ...(state.config as object), ramBytes: 64 << 20 } }, /another machine/],
    ['more harts', { ...state, config: { ...(state.config as object), harts: 2 } }, /another machine/],
    ['no clock', { ...state, devices: state.devices.filter(({ name }) => name !== 'clock') }, /clock/],
    ['time before zero', replace(state, 'clock', { ticks: -1 }), /clock/],
    ['no plic', { ...state, devices: state.devices.filter(({ name }) => !name.startsWith('plic')) }, /plic.*missing/],
    ['no hart', { ...state, devices: state.devices.filter(({ name }) => name !== 'hart0') }, /hart0.*missing/],
    ['a device twice', { ...state, devices: [...state.devices, state.devices[1]!] }, /twice/],
    ['a device too many', { ...state, devices: [...state.devices, { name: 'tpm0', version: 1, state: {} }] }, /tpm0/],
    [
      'a version of tomorrow',
      { ...state, devices: state.devices.map((d) => (d.name === 'hart0' ? { ...d, version: 99 } : d)) },
      /hart0.*version/,
    ],
    ['a hart that is text', replace(state, 'hart0', 'pc=0'), /hart0/],
    ['x0 that is not zero', withHart({ x: [1n, ...(hart.x as bigint[]).slice(1)] }), /x\.0/],
    ['31 registers', withHart({ x: (hart.x as bigint[]).slice(1) }), /hart0\.x/],
    ['a register of 65 bits', withHart({ x: [0n, 1n << 64n, ...(hart.x as bigint[]).slice(2)] }), /x\.1/],
    ['a negative register', withHart({ mepc: -2n }), /mepc/],
    ['an odd pc', withHart({ pc: 0x8000_0001n }), /pc/],
    ['privilege 2', withHart({ privilege: 2 }), /privilege/],
    ['MPP 2', withHart({ mstatus: 2n << 11n }), /mstatus/],
    ['mstatus.UBE', withHart({ mstatus: 1n << 6n }), /mstatus/],
    ['FS 4', withHart({ fs: 4 }), /fs/],
    ['fflags 32', withHart({ fflags: 32 }), /fflags/],
    ['satp of mode 1', withHart({ satp: 1n << 60n }), /satp/],
    ['mtvec of mode 2', withHart({ mtvec: 2n }), /mtvec/],
    ['an odd sepc', withHart({ sepc: 1n }), /sepc/],
    ['MTI delegated', withHart({ mideleg: 1n << 7n }), /mideleg/],
    ['ecall from M delegated', withHart({ medeleg: 1n << 11n }), /medeleg/],
    ['mie of no interrupt', withHart({ mie: 1n << 12n }), /mie/],
    ['menvcfg of no field', withHart({ menvcfg: 1n << 10n }), /menvcfg/],
    ['reserved CBIE', withHart({ senvcfg: 2n << 4n }), /senvcfg/],
    ['pmpcfg with W and no R', withHart({ pmpcfg: new Uint8Array(16).fill(2) }), /pmpcfg/],
    ['pmpcfg of 15 entries', withHart({ pmpcfg: new Uint8Array(15) }), /pmpcfg/],
    ['pmpaddr of 55 bits', withHart({ pmpaddr: [1n << 54n, ...new Array<bigint>(15).fill(0n)] }), /pmpaddr/],
    ['a machine pin', withHart({ mip: 1 << 11 }), /mip/],
    ['HSM state 5', withHart({ hsm: 5 }), /hsm/],
    ['mcountinhibit.TM', withHart({ mcountinhibit: 2 }), /mcountinhibit/],
  ];
  for (const [name, bad, message] of cases) {
    t.throws(() => machine.prepareState(bad), { code: 'ERR_STATE', message }, name);
    t.is(plain(machine.saveState()), before, name);
  }
  // And every field of the hart that is missing or of another type
  for (const field of Object.keys(hart)) {
    const { [field]: _gone, ...rest } = hart;
    t.throws(() => machine.prepareState(replace(state, 'hart0', rest)), { code: 'ERR_STATE' }, `without ${field}`);
    t.throws(() => machine.prepareState(withHart({ [field]: null })), { code: 'ERR_STATE' }, `null ${field}`);
  }
  t.is(plain(machine.saveState()), before);
  t.notThrows(() => machine.prepareState(state), 'and the true one is accepted');
});

function replace(state: MachineState, name: string, value: StateValue): MachineState {
  return {
    ...state,
    devices: state.devices.map((device) => (device.name === name ? { ...device, state: value } : device)),
  };
}

test.serial('A machine that cannot be built is refused before anything runs', (t) => {
  t.throws(() => new MachineRig({ kernel: new Uint8Array(0) }), { instanceOf: BootError });
  t.throws(() => new MachineRig({ harts: 9 }), { instanceOf: RangeError });
  t.throws(() => new MachineRig({ ramBytes: 4096 }), { instanceOf: RangeError });
  t.throws(() => new MachineRig({ ramBytes: 2 ** 33 }), { instanceOf: RangeError });
});

// --- two harts ---------------------------------------------------------------------------------------------------

const [A0, A1, A2, A6, A7, T0, T1, T2, T3] = [10, 11, 12, 16, 17, 5, 6, 7, 28] as const;
const program = (words: readonly number[]): Uint8Array => new Uint8Array(Uint32Array.from(words).buffer);
const lui = (rd: number, imm: number) => encode('lui', { rd, imm });
const addi = (rd: number, rs1: number, imm: number) => encode('addi', { rd, rs1, imm });
/** Prints the digit in T1 on the UART */
const PRINT_T1 = [lui(T0, 0x1000_0000), encode('sb', { rs1: T0, rs2: T1 })];
const POWER_OFF = [lui(T0, 0x10_0000), lui(T1, 0x5000), addi(T1, T1, 0x555), encode('sw', { rs1: T0, rs2: T1 })];
const PARK = [encode('wfi'), encode('jal', { imm: -4 })];
/** T2 = RAM + 1 MiB */
const FLAG_TO_T2 = [
  addi(T2, 0, 1),
  encode('slli', { rd: T2, rs1: T2, imm: 31 }),
  lui(T3, 0x10_0000),
  encode('add', { rd: T2, rs1: T2, rs2: T3 }),
];

test.serial('With -smp 2 and no firmware both harts start, each with its number, and share memory', async (t) => {
  const words = [
    ...FLAG_TO_T2,
    addi(T1, A0, 48),
    ...PRINT_T1,
    addi(T3, 0, 1),
    encode('amoadd.w', { rs1: T2, rs2: T3 }),
    encode('bne', { rs1: A0, imm: 4 * (4 + POWER_OFF.length) }),
    encode('lw', { rd: T1, rs1: T2 }),
    addi(T3, 0, 2),
    encode('bne', { rs1: T1, rs2: T3, imm: -8 }),
    ...POWER_OFF,
    ...PARK,
  ];
  await using rig = new MachineRig({ harts: 2, kernel: program(words) });
  rig.machine.start();
  t.deepEqual(await rig.event('shutdown'), { kind: 'shutdown', reason: 'guest-shutdown', exitCode: 0 });
  t.deepEqual([...rig.output].sort(), ['0', '1']);
});

test.serial(
  'With the built-in SBI the second hart waits until it is started, and starts where it is told',
  async (t) => {
    const start = [
      // sbi_hart_start(1, second, 0x37): EID "HSM", FID 0
      addi(A0, 0, 1),
      encode('auipc', { rd: A1 }),
      addi(A1, A1, 0), // patched below: distance to `second`
      addi(A2, 0, 0x37),
      addi(A6, 0, 0),
      lui(A7, 0x48_5000),
      addi(A7, A7, 0x34d),
      encode('ecall'),
      addi(T1, A0, 48), // '0' where it succeeded
      ...PRINT_T1,
      ...FLAG_TO_T2,
      encode('lw', { rd: T1, rs1: T2 }),
      encode('beq', { rs1: T1, imm: -4 }),
      ...PRINT_T1,
      ...POWER_OFF,
      ...PARK,
    ];
    const second = [
      ...FLAG_TO_T2,
      encode('add', { rd: A1, rs1: A1, rs2: A0 }),
      addi(A1, A1, -1),
      encode('sw', { rs1: T2, rs2: A1 }),
      ...PARK,
    ];
    start[2] = addi(A1, A1, 4 * (start.length - 1));
    await using rig = new MachineRig({ harts: 2, bios: 'builtin', kernel: program([...start, ...second]) });
    rig.machine.start();
    await rig.event('shutdown');
    t.is(rig.output, '07', 'success, then the opaque value');
    t.is(rig.machine.ram(0x10_0000, 1)[0], 0x37);
  },
);

test.serial('A guest that spins in a fault loop can be paused, saved and closed', async (t) => {
  for (const straddles of [false, true]) {
    // mtvec points at a handler that cannot be fetched, or whose instruction goes on past RAM: every step is a trap
    const words = [
      addi(T2, 0, 1),
      encode('slli', { rd: T2, rs1: T2, imm: 31 }),
      lui(T3, 32 << 20),
      encode('add', { rd: T2, rs1: T2, rs2: T3 }),
      // The last four bytes of RAM: c.nop, then half an instruction
      lui(T3, 0x13_0000),
      addi(T3, T3, 1),
      encode('sw', { rs1: T2, rs2: T3, imm: -4 }),
      addi(T2, T2, straddles ? -4 : 0),
      encode('csrrw', { rs1: T2, csr: 0x305 }),
      addi(T1, 0, 33),
      ...PRINT_T1,
      encode('ecall'),
    ];
    await using rig = new MachineRig({ kernel: program(words) });
    rig.machine.start();
    await rig.expect(/!/);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await rig.machine.pause();
    const hart = rig.machine.saveState().devices.find(({ name }) => name === 'hart0')!.state as Record<string, bigint>;
    t.is(hart.mcause, 1n);
    t.is(hart.mtval, BigInt(RAM + (32 << 20)));
  }
});
