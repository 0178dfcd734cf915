import test from 'ava';
import fc from 'fast-check';
import { handleEcall, type RemoteFence, type SbiHost, type SbiRegisters } from '../../../emulator/machine/sbi.ts';
import type { HartState } from '../../../emulator/machine/sbi_constants.ts';
import { GuestMemory, RAM_BASE } from '../../../emulator/memory/guest_memory.ts';

const TIME = 0x54494d45n;
const IPI = 0x735049n;
const RFENCE = 0x52464e43n;
const HSM = 0x48534dn;
const SRST = 0x53525354n;
const DBCN = 0x4442434en;
const PMU = 0x504d55n;
const SUSP = 0x53555350n;
const FWFT = 0x46574654n;
const ALL = 0xffff_ffff_ffff_ffffn;

/** Writes down every call; harts 0 and 1 run, 2 is stopped. */
class RecordedHost implements SbiHost {
  readonly harts = 3;
  readonly hartId = 0;
  readonly memory = new GuestMemory(new Uint8Array(8192), new Uint8Array(2));
  readonly machineIds = { mvendorid: 0n, marchid: 0x2an, mimpid: 3n };
  readonly calls: unknown[][] = [];
  readonly states: HartState[] = [0, 0, 1];
  fencesPending = 0;
  consoleRoom = 100;
  input = new Uint8Array(0);

  setTimer(deadline: bigint): void {
    this.calls.push(['setTimer', deadline]);
  }
  sendIpi(harts: number): void {
    this.calls.push(['sendIpi', harts]);
  }
  clearIpi(): void {
    this.calls.push(['clearIpi']);
  }
  remoteFence(fence: RemoteFence): boolean {
    this.calls.push(['fence', fence.kind, fence.harts, fence.start, fence.size, fence.asid]);
    return this.fencesPending-- <= 0;
  }
  hartStatus(hart: number): HartState {
    return this.states[hart]!;
  }
  hartStart(hart: number, address: bigint, opaque: bigint): boolean {
    this.calls.push(['start', hart, address, opaque]);
    return this.states[hart] === 1;
  }
  hartStop(): void {
    this.calls.push(['stop']);
  }
  hartSuspend(): void {
    this.calls.push(['suspend']);
  }
  hartSuspendNonRetentive(address: bigint, opaque: bigint): void {
    this.calls.push(['suspend', address, opaque]);
  }
  systemReset(type: string, failure: boolean): void {
    this.calls.push(['reset', type, failure]);
  }
  consoleWrite(bytes: Uint8Array): number {
    const count = Math.min(bytes.length, this.consoleRoom);
    if (count > 0) this.calls.push(['write', new TextDecoder().decode(bytes.slice(0, count))]);
    return count;
  }
  consoleRead(maxBytes: number): Uint8Array {
    const bytes = this.input.slice(0, maxBytes);
    this.input = this.input.slice(maxBytes);
    return bytes;
  }
  loadVirtual64(address: bigint): bigint | undefined {
    return address === 0x1000n ? 0b010n : address === 0x2000n ? 0b1000n : undefined;
  }
}

function call(host: SbiHost, extension: bigint, functionId: bigint, ...args: bigint[]) {
  const [a0 = 0n, a1 = 0n, a2 = 0n, a3 = 0n, a4 = 0n, a5 = 0n] = args;
  return handleEcall(host, [a0, a1, a2, a3, a4, a5, functionId, extension]);
}

const error = (code: number) => ({ error: code, value: 0n });

test('SBI BASE tells version 2.0, what is there and what is not', (t) => {
  const host = new RecordedHost();
  t.deepEqual(call(host, 0x10n, 0n), { error: 0, value: 0x0200_0000n });
  for (const extension of [0x10n, TIME, IPI, RFENCE, HSM, SRST, DBCN, 0n, 8n]) {
    t.deepEqual(call(host, 0x10n, 3n, extension), { error: 0, value: 1n }, extension.toString(16));
  }
  for (const extension of [PMU, SUSP, FWFT, 9n, ALL]) {
    t.deepEqual(call(host, 0x10n, 3n, extension), { error: 0, value: 0n }, extension.toString(16));
  }
  t.deepEqual(call(host, 0x10n, 5n), { error: 0, value: 0x2an });
  t.deepEqual(call(host, 0x10n, 7n), error(-2));
});

test('SBI: a guest that calls extensions or functions which do not exist is refused, and nothing happens', (t) => {
  const host = new RecordedHost();
  for (const extension of [PMU, SUSP, FWFT, 9n, 0xfn, 0x0a00_0000n, ALL]) {
    t.deepEqual(call(host, extension, 0n), error(-2), extension.toString(16));
  }
  for (const [extension, functionId] of [
    [TIME, 1n],
    [IPI, 1n],
    [RFENCE, 3n],
    [RFENCE, 7n],
    [HSM, 4n],
    [SRST, 1n],
    [DBCN, 3n],
    [RFENCE, ALL],
  ] as const) {
    t.deepEqual(call(host, extension, functionId, 1n), error(-2));
  }
  t.deepEqual(host.calls, []);
});

test('SBI TIME takes any 64-bit deadline, also from a sign-extended register', (t) => {
  const host = new RecordedHost();
  t.deepEqual(call(host, TIME, 0n, -1n), { error: 0, value: 0n });
  t.deepEqual(host.calls, [['setTimer', ALL]]);
});

test('SBI IPI resolves the mask from its base and leaves stopped harts alone', (t) => {
  const host = new RecordedHost();
  t.deepEqual(call(host, IPI, 0n, 1n, 1n), { error: 0, value: 0n });
  t.deepEqual(call(host, IPI, 0n, 0b111n, 0n), { error: 0, value: 0n });
  t.deepEqual(call(host, IPI, 0n, 0n, ALL), { error: 0, value: 0n });
  t.deepEqual(host.calls, [
    ['sendIpi', 0b010],
    ['sendIpi', 0b011],
    ['sendIpi', 0b011],
  ]);
});

test('SBI: a guest that names harts which do not exist is refused', (t) => {
  const host = new RecordedHost();
  for (const [mask, base] of [
    [0b1000n, 0n],
    [ALL, 0n],
    [0b100n, 1n],
    [1n << 63n, 0n],
    [1n << 63n, 2n],
    [1n, 3n],
    [0n, 64n],
    [1n, ALL - 1n],
    [1n, 1n << 63n],
  ] as const) {
    t.deepEqual(call(host, IPI, 0n, mask, base), error(-3), `${mask} ${base}`);
    t.deepEqual(call(host, RFENCE, 0n, mask, base), error(-3), `${mask} ${base}`);
  }
  t.deepEqual(host.calls, []);
});

test('SBI RFENCE passes ranges and address spaces, and widens what means everything', (t) => {
  const host = new RecordedHost();
  call(host, RFENCE, 0n, 1n, 0n, 5n, 5n);
  call(host, RFENCE, 1n, 1n, 0n, 0x1000n, 0x2000n);
  call(host, RFENCE, 1n, 1n, 0n, 0n, 0n);
  call(host, RFENCE, 2n, 1n, 1n, 0x1000n, ALL, 7n);
  t.deepEqual(host.calls, [
    ['fence', 'fence.i', 1, 0n, ALL, 0],
    ['fence', 'sfence.vma', 1, 0x1000n, 0x2000n, 0],
    ['fence', 'sfence.vma', 1, 0n, ALL, 0],
    ['fence', 'sfence.vma.asid', 2, 0n, ALL, 7],
  ]);
});

test('SBI RFENCE: a range that wraps or an address space that cannot be is refused', (t) => {
  const host = new RecordedHost();
  t.deepEqual(call(host, RFENCE, 1n, 1n, 0n, ALL, 2n), error(-5));
  t.deepEqual(call(host, RFENCE, 2n, 1n, 0n, 0x1000n, 0x1000n, 0x1_0000n), error(-3));
  t.deepEqual(host.calls, []);
});

test('SBI RFENCE is made again until every hart has fenced', (t) => {
  const host = new RecordedHost();
  host.fencesPending = 2;
  t.is(call(host, RFENCE, 0n, 2n, 0n), 'retry');
  t.is(call(host, RFENCE, 0n, 2n, 0n), 'retry');
  t.deepEqual(call(host, RFENCE, 0n, 2n, 0n), { error: 0, value: 0n });
});

test('SBI HSM starts a stopped hart, tells states, suspends and stops', (t) => {
  const host = new RecordedHost();
  const start = BigInt(RAM_BASE) + 0x100n;
  t.deepEqual(call(host, HSM, 0n, 2n, start, 99n), { error: 0, value: 0n });
  t.deepEqual(call(host, HSM, 2n, 2n), { error: 0, value: 1n });
  t.deepEqual(call(host, HSM, 3n, 0n), { error: 0, value: 0n });
  t.is(call(host, HSM, 3n, 0x8000_0000n, start, 5n), 'noreturn');
  t.is(call(host, HSM, 3n, 0xffff_ffff_8000_0000n, start, 6n), 'noreturn', 'uint32_t, sign-extended');
  t.is(call(host, HSM, 1n), 'noreturn');
  t.deepEqual(host.calls, [
    ['start', 2, start, 99n],
    ['suspend'],
    ['suspend', start, 5n],
    ['suspend', start, 6n],
    ['stop'],
  ]);
});

test('SBI HSM: a guest that starts what runs, what does not exist, or outside of RAM is refused', (t) => {
  const host = new RecordedHost();
  const start = BigInt(RAM_BASE);
  t.deepEqual(call(host, HSM, 0n, 1n, start), error(-6));
  host.calls.length = 0;
  for (const hart of [3n, 64n, ALL]) {
    t.deepEqual(call(host, HSM, 0n, hart, start), error(-3));
    t.deepEqual(call(host, HSM, 2n, hart), error(-3));
  }
  for (const address of [0n, 0x1000n, start - 2n, start + 8192n, start + 8190n, start + 1n, 1n << 53n, ALL - 1n]) {
    t.deepEqual(call(host, HSM, 0n, 2n, address), error(-5), address.toString(16));
    t.deepEqual(call(host, HSM, 3n, 0x8000_0000n, address), error(-5), address.toString(16));
  }
  t.deepEqual(call(host, HSM, 3n, 1n), error(-3));
  t.deepEqual(call(host, HSM, 3n, 0x1000_0000n), error(-2));
  t.deepEqual(call(host, HSM, 3n, 0x8000_0001n, start), error(-3));
  t.deepEqual(call(host, HSM, 3n, 0x9000_0000n, start), error(-2));
  t.deepEqual(host.calls, []);
});

test('SBI SRST ends or restarts the machine; reserved types and reasons are refused', (t) => {
  const host = new RecordedHost();
  t.deepEqual(call(host, SRST, 0n, 3n, 0n), error(-3));
  t.deepEqual(call(host, SRST, 0n, 0n, 2n), error(-3));
  t.deepEqual(call(host, SRST, 0n, 0xf000_0000n, 0n), error(-2));
  t.deepEqual(host.calls, []);
  t.is(call(host, SRST, 0n, 0n, 0n), 'noreturn');
  t.is(call(host, SRST, 0n, 1n, 1n), 'noreturn');
  t.is(call(host, SRST, 0n, 2n, 0xe000_0000n), 'noreturn');
  t.deepEqual(host.calls, [
    ['reset', 'shutdown', false],
    ['reset', 'cold-reboot', true],
    ['reset', 'warm-reboot', false],
  ]);
});

test('SBI DBCN writes from and reads into guest memory, partially where it must', (t) => {
  const host = new RecordedHost();
  const address = BigInt(RAM_BASE) + 16n;
  host.memory.write(RAM_BASE + 16, new TextEncoder().encode('hello'));
  t.deepEqual(call(host, DBCN, 0n, 5n, address, 0n), { error: 0, value: 5n });
  host.consoleRoom = 2;
  t.deepEqual(call(host, DBCN, 0n, 5n, address, 0n), { error: 0, value: 2n });
  host.input = new TextEncoder().encode('abc');
  t.deepEqual(call(host, DBCN, 1n, 2n, address, 0n), { error: 0, value: 2n });
  t.is(new TextDecoder().decode(host.memory.read(RAM_BASE + 16, 3)), 'abl');
  t.deepEqual(call(host, DBCN, 1n, 0n, address, 0n), { error: 0, value: 0n });
  t.deepEqual(call(host, DBCN, 2n, 0xffff_ff41n), { error: 0, value: 0n });
  host.consoleRoom = 0;
  t.is(call(host, DBCN, 2n, 65n), 'retry');
  t.deepEqual(host.calls, [
    ['write', 'hello'],
    ['write', 'he'],
    ['write', 'A'],
  ]);
});

test('SBI DBCN: a guest that points outside of RAM is refused', (t) => {
  const host = new RecordedHost();
  const ram = BigInt(RAM_BASE);
  for (const [bytes, low, high] of [
    [1n, 0n, 0n],
    [1n, ram - 1n, 0n],
    [8193n, ram, 0n],
    [8192n, ram + 1n, 0n],
    [ALL, ram, 0n],
    [1n, ram, 1n],
    [1n, ALL, 0n],
    [2n, ALL, ALL],
  ] as const) {
    t.deepEqual(call(host, DBCN, 0n, bytes, low, high), error(-3), `${bytes} ${low} ${high}`);
    t.deepEqual(call(host, DBCN, 1n, bytes, low, high), error(-3), `${bytes} ${low} ${high}`);
  }
  t.deepEqual(host.calls, []);
});

test('SBI legacy calls answer in a0 alone', (t) => {
  const host = new RecordedHost();
  const only = (code: number) => ({ error: code, value: undefined });
  host.input = Uint8Array.of(0xe9);
  t.deepEqual(call(host, 0n, 77n, 5n), only(0));
  t.deepEqual(call(host, 1n, 0n, 65n), only(0));
  t.deepEqual(call(host, 2n, 0n), only(0xe9));
  t.deepEqual(call(host, 2n, 0n), only(-1));
  t.deepEqual(call(host, 3n, 0n), only(0));
  t.deepEqual(call(host, 4n, 0n, 0x1000n), only(0));
  t.deepEqual(call(host, 5n, 0n, 0n), only(0));
  t.deepEqual(call(host, 7n, 0n, 0x1000n, 0x5000n, 0x1000n, 3n), only(0));
  t.is(call(host, 8n, 0n), 'noreturn');
  t.deepEqual(host.calls, [
    ['setTimer', 5n],
    ['write', 'A'],
    ['clearIpi'],
    ['sendIpi', 2],
    ['fence', 'fence.i', 3, 0n, ALL, 0],
    ['fence', 'sfence.vma.asid', 2, 0x5000n, 0x1000n, 3],
    ['reset', 'shutdown', false],
  ]);
});

test('SBI legacy: a mask pointer that faults or a mask of no harts is refused', (t) => {
  const host = new RecordedHost();
  t.deepEqual(call(host, 4n, 0n, 0xdead_0000n), { error: -5, value: undefined });
  t.deepEqual(call(host, 6n, 0n, 0x2000n), { error: -3, value: undefined });
  t.deepEqual(call(host, 6n, 0n, 0x1000n, ALL, 2n), { error: -5, value: undefined });
  host.consoleRoom = 0;
  t.is(call(host, 1n, 0n, 65n), 'retry');
  t.deepEqual(host.calls, []);
});

test('SBI: no registers of a guest make it throw', (t) => {
  const interesting = fc.oneof(
    fc.bigInt({ min: 0n, max: ALL }),
    fc.constantFrom(0n, 1n, 2n, 3n, 4n, 0x10n, ALL, ALL - 1n, 1n << 63n, BigInt(RAM_BASE), BigInt(RAM_BASE) + 8190n),
  );
  const extension = fc.oneof(interesting, fc.constantFrom(0x10n, TIME, IPI, RFENCE, HSM, SRST, DBCN));
  const registers = fc.tuple(
    interesting,
    interesting,
    interesting,
    interesting,
    interesting,
    interesting,
    fc.oneof(fc.constantFrom(0n, 1n, 2n, 3n), interesting),
    extension,
  );
  fc.assert(
    fc.property(registers, (values) => {
      const host = new RecordedHost();
      handleEcall(host, values as SbiRegisters);
      for (const [name, kind, harts] of host.calls) {
        const mask = name === 'sendIpi' ? (kind as number) : name === 'fence' ? (harts as number) : 0;
        if (mask >>> 2 !== 0) return false;
      }
      return true;
    }),
    { numRuns: 3000 },
  );
  t.pass();
});
