import type { GuestMemory } from '../memory/guest_memory.ts';
import {
  EXTENSION,
  HART_STATE,
  type HartState,
  RESET_REASON_CUSTOM,
  RESET_REASON_FAILURE,
  RESET_TYPES,
  SBI,
  SBI_IMPLEMENTATION_ID,
  SBI_IMPLEMENTATION_VERSION,
  SBI_SPEC_VERSION,
  SUSPEND_NON_RETENTIVE,
  SUSPEND_RETENTIVE,
} from './sbi_constants.ts';

const ALL_ONES = 0xffff_ffff_ffff_ffffn;
/** The console moves at most this much in one call; the specification allows partial transfers, in `bytes` */
const MAX_CONSOLE_BYTES = 4096n;
/** ASIDs have at most 16 bits (privileged spec, satp) */
const MAX_ASID = 0xffffn;

export type FenceKind = 'fence.i' | 'sfence.vma' | 'sfence.vma.asid';
export type ResetType = (typeof RESET_TYPES)[number];

/** Which translations a remote fence is for. */
export interface RemoteFence {
  readonly kind: FenceKind;
  /** Bit `i` is hart `i`; never a hart that does not exist */
  readonly harts: number;
  /** First virtual address; 0 for all */
  readonly start: bigint;
  /** In `bytes`, `start + size` is at most 2^64; 2^64-1 for all */
  readonly size: bigint;
  /** For 'sfence.vma.asid' */
  readonly asid: number;
}

/**
 * What the SBI needs of the machine, on behalf of the hart that made the call. Values are checked before they
 * get here: harts exist, physical addresses are RAM, lengths are bounded.
 */
export interface SbiHost {
  /** How many there are; ids are 0..harts-1 */
  readonly harts: number;
  /** Of the caller */
  readonly hartId: number;
  readonly memory: GuestMemory;
  readonly machineIds: { readonly mvendorid: bigint; readonly marchid: bigint; readonly mimpid: bigint };

  /** Arms the caller's timer at this `time` (2^64-1: never) and takes back an interrupt that is pending */
  setTimer(deadline: bigint): void;
  /** Raises SSIP of each hart of the mask */
  sendIpi(harts: number): void;
  /** Clears the caller's SSIP (legacy only) */
  clearIpi(): void;
  /**
   * Makes other harts (and the caller, if it is in the mask) fence. Gives true when all have; while it gives
   * false the caller serves what others ask of it and makes the call again, with the same values.
   */
  remoteFence(fence: RemoteFence): boolean;
  hartStatus(hart: number): HartState;
  /** Starts a stopped hart in S-mode with a0 its id and a1 `opaque`; false if it was not stopped */
  hartStart(hart: number, address: bigint, opaque: bigint): boolean;
  /** Stops the caller, for good or until it is started */
  hartStop(): void;
  /** As WFI, the caller goes on behind the call */
  hartSuspend(): void;
  /** As WFI, but the caller goes on at `address` in S-mode without translation, a0 its id and a1 `opaque` */
  hartSuspendNonRetentive(address: bigint, opaque: bigint): void;
  systemReset(type: ResetType, failure: boolean): void;
  /** Gives how many bytes were taken */
  consoleWrite(bytes: Uint8Array): number;
  /** Gives what is there, at most `maxBytes`; empty when nothing is */
  consoleRead(maxBytes: number): Uint8Array;
  /** A load by the caller's own translation (legacy hart masks); undefined where it would fault */
  loadVirtual64(address: bigint): bigint | undefined;
}

/** Registers a0..a7, 64 bits each, signed or unsigned */
export type SbiRegisters = readonly [bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint];

/**
 * What becomes of the caller. A pair goes to a0 and a1, sign-extended; where `value` is undefined, a1 is kept
 * (legacy calls). 'noreturn': the hart goes on elsewhere or not at all. 'retry': the pc stays on the ecall;
 * the hart serves requests and makes the call again.
 */
export type SbiResult = { readonly error: number; readonly value: bigint | undefined } | 'noreturn' | 'retry';

/**
 * Serves one `ecall` from S-mode: SBI 2.0 with BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN and the legacy calls.
 * Anything else is refused with SBI_ERR_NOT_SUPPORTED, as are functions that an extension does not have.
 */
export function handleEcall(host: SbiHost, registers: SbiRegisters): SbiResult {
  const a = registers.map((register) => BigInt.asUintN(64, register)) as unknown as SbiRegisters;
  const extension = a[7];
  const functionId = a[6];
  switch (extension) {
    case EXTENSION.BASE:
      return base(host, functionId, a[0]);
    case EXTENSION.TIME:
      if (functionId !== 0n) return refuse(SBI.ERR_NOT_SUPPORTED);
      host.setTimer(a[0]);
      return done();
    case EXTENSION.IPI: {
      if (functionId !== 0n) return refuse(SBI.ERR_NOT_SUPPORTED);
      const harts = hartMask(host, a[0], a[1]);
      if (harts === undefined) return refuse(SBI.ERR_INVALID_PARAM);
      host.sendIpi(harts);
      return done();
    }
    case EXTENSION.RFENCE:
      return remoteFence(host, functionId, a);
    case EXTENSION.HSM:
      return hartStateManagement(host, functionId, a);
    case EXTENSION.SRST:
      return functionId === 0n ? systemReset(host, a[0], a[1]) : refuse(SBI.ERR_NOT_SUPPORTED);
    case EXTENSION.DBCN:
      return debugConsole(host, functionId, a);
    default:
      return extension <= EXTENSION.SHUTDOWN ? legacy(host, extension, a) : refuse(SBI.ERR_NOT_SUPPORTED);
  }
}

function done(value = 0n): SbiResult {
  return { error: SBI.SUCCESS, value };
}

function refuse(error: number): SbiResult {
  return { error, value: 0n };
}

const PROBED: ReadonlySet<bigint> = new Set(Object.values(EXTENSION));

function base(host: SbiHost, functionId: bigint, argument: bigint): SbiResult {
  switch (functionId) {
    case 0n:
      return done(SBI_SPEC_VERSION);
    case 1n:
      return done(SBI_IMPLEMENTATION_ID);
    case 2n:
      return done(SBI_IMPLEMENTATION_VERSION);
    case 3n:
      return done(PROBED.has(argument) ? 1n : 0n);
    case 4n:
      return done(host.machineIds.mvendorid);
    case 5n:
      return done(host.machineIds.marchid);
    case 6n:
      return done(host.machineIds.mimpid);
    default:
      return refuse(SBI.ERR_NOT_SUPPORTED);
  }
}

/** Every hart that can be interrupted: a stopped one would find stale requests when it starts. */
function reachable(host: SbiHost, harts: number): number {
  let mask = 0;
  for (let hart = 0; hart < host.harts; hart++) {
    if ((harts & (1 << hart)) !== 0 && host.hartStatus(hart) !== HART_STATE.stopped) mask |= 1 << hart;
  }
  return mask;
}

function allHarts(host: SbiHost): number {
  return 2 ** host.harts - 1;
}

/**
 * Chapter 3.1: bit `i` of the mask is hart `base + i`; a base of all ones means every hart, whatever the mask.
 * Undefined where a hart does not exist.
 */
function hartMask(host: SbiHost, mask: bigint, base: bigint): number | undefined {
  if (base === ALL_ONES) return reachable(host, allHarts(host));
  if (base >= BigInt(host.harts)) return undefined;
  // Shifted without loss: a bit beyond the last hart must be seen, not cut off
  const harts = mask << base;
  if (harts >> BigInt(host.harts) !== 0n) return undefined;
  return reachable(host, Number(harts));
}

function remoteFence(host: SbiHost, functionId: bigint, a: SbiRegisters): SbiResult {
  const kinds: readonly FenceKind[] = ['fence.i', 'sfence.vma', 'sfence.vma.asid'];
  // Functions 3..6 are for the hypervisor extension, which the harts do not have
  const kind = functionId < 3n ? kinds[Number(functionId)] : undefined;
  if (kind === undefined) return refuse(SBI.ERR_NOT_SUPPORTED);
  const harts = hartMask(host, a[0], a[1]);
  if (harts === undefined) return refuse(SBI.ERR_INVALID_PARAM);
  return fence(host, kind, harts, a[2], a[3], a[4]) ?? done();
}

/** Undefined when all is done. */
function fence(
  host: SbiHost,
  kind: FenceKind,
  harts: number,
  start: bigint,
  size: bigint,
  asid: bigint,
): SbiResult | undefined {
  const isRange = kind !== 'fence.i';
  // "start_addr and size both 0" and "size is 2^XLEN-1" mean the whole space
  const isAll = !isRange || size === ALL_ONES || (start === 0n && size === 0n);
  if (!isAll && start + size > ALL_ONES + 1n) return refuse(SBI.ERR_INVALID_ADDRESS);
  if (kind === 'sfence.vma.asid' && asid > MAX_ASID) return refuse(SBI.ERR_INVALID_PARAM);
  const complete = host.remoteFence({
    kind,
    harts,
    start: isAll ? 0n : start,
    size: isAll ? ALL_ONES : size,
    asid: kind === 'sfence.vma.asid' ? Number(asid) : 0,
  });
  return complete ? undefined : 'retry';
}

function hartStateManagement(host: SbiHost, functionId: bigint, a: SbiRegisters): SbiResult {
  switch (functionId) {
    case 0n: {
      if (a[0] >= BigInt(host.harts)) return refuse(SBI.ERR_INVALID_PARAM);
      if (!isCode(host, a[1])) return refuse(SBI.ERR_INVALID_ADDRESS);
      return host.hartStart(Number(a[0]), a[1], a[2]) ? done() : refuse(SBI.ERR_ALREADY_AVAILABLE);
    }
    case 1n:
      host.hartStop();
      return 'noreturn';
    case 2n:
      if (a[0] >= BigInt(host.harts)) return refuse(SBI.ERR_INVALID_PARAM);
      return done(BigInt(host.hartStatus(Number(a[0]))));
    case 3n: {
      const type = low32(a[0]);
      if (type === SUSPEND_RETENTIVE) {
        host.hartSuspend();
        return done();
      }
      if (type === SUSPEND_NON_RETENTIVE) {
        if (!isCode(host, a[1])) return refuse(SBI.ERR_INVALID_ADDRESS);
        host.hartSuspendNonRetentive(a[1], a[2]);
        return 'noreturn';
      }
      // 0x1000_0000.. and 0x9000_0000.. are the platform's, and it has none; the rest is reserved
      return refuse((type & 0x7fff_ffff) >= 0x1000_0000 ? SBI.ERR_NOT_SUPPORTED : SBI.ERR_INVALID_PARAM);
    }
    default:
      return refuse(SBI.ERR_NOT_SUPPORTED);
  }
}

/** Arguments of type uint32_t come sign-extended from some compilers, zero-extended from others. */
function low32(value: bigint): number {
  return Number(value & 0xffff_ffffn);
}

/** Where a hart may be sent: RAM, and instructions are two-byte aligned. */
function isCode(host: SbiHost, address: bigint): boolean {
  return (address & 1n) === 0n && isRam(host, address, 4n);
}

function isRam(host: SbiHost, address: bigint, bytes: bigint): boolean {
  return address <= BigInt(Number.MAX_SAFE_INTEGER) && host.memory.contains(Number(address), Number(bytes));
}

function systemReset(host: SbiHost, typeArgument: bigint, reasonArgument: bigint): SbiResult {
  const type = RESET_TYPES[low32(typeArgument)];
  const reason = low32(reasonArgument);
  if (type === undefined) {
    return refuse(low32(typeArgument) >= 0xf000_0000 ? SBI.ERR_NOT_SUPPORTED : SBI.ERR_INVALID_PARAM);
  }
  if (reason > RESET_REASON_FAILURE && reason < RESET_REASON_CUSTOM) return refuse(SBI.ERR_INVALID_PARAM);
  host.systemReset(type, reason === RESET_REASON_FAILURE);
  return 'noreturn';
}

function debugConsole(host: SbiHost, functionId: bigint, a: SbiRegisters): SbiResult {
  switch (functionId) {
    case 0n:
    case 1n: {
      const [bytes, low, high] = a;
      // A range of more than 2^64 bytes of address has a high half; RAM is far below
      if (high !== 0n || bytes > BigInt(host.memory.sizeBytes) || !isRam(host, low, bytes)) {
        return refuse(SBI.ERR_INVALID_PARAM);
      }
      const count = Number(bytes < MAX_CONSOLE_BYTES ? bytes : MAX_CONSOLE_BYTES);
      if (functionId === 0n) return done(BigInt(host.consoleWrite(host.memory.read(Number(low), count))));
      const input = count === 0 ? new Uint8Array(0) : host.consoleRead(count);
      host.memory.write(Number(low), input);
      return done(BigInt(input.length));
    }
    case 2n:
      // "a blocking SBI call": it returns when the byte is written
      return host.consoleWrite(Uint8Array.of(Number(a[0] & 0xffn))) === 1 ? done() : 'retry';
    default:
      return refuse(SBI.ERR_NOT_SUPPORTED);
  }
}

/** Chapter 5: the result is in a0 alone. */
function legacy(host: SbiHost, extension: bigint, a: SbiRegisters): SbiResult {
  const only = (error: number): SbiResult => ({ error, value: undefined });
  switch (extension) {
    case EXTENSION.SET_TIMER:
      host.setTimer(a[0]);
      return only(0);
    case EXTENSION.CONSOLE_PUTCHAR:
      return host.consoleWrite(Uint8Array.of(Number(a[0] & 0xffn))) === 1 ? only(0) : 'retry';
    case EXTENSION.CONSOLE_GETCHAR:
      return only(host.consoleRead(1)[0] ?? -1);
    case EXTENSION.CLEAR_IPI:
      host.clearIpi();
      return only(0);
    case EXTENSION.SHUTDOWN:
      host.systemReset('shutdown', false);
      return 'noreturn';
    default: {
      // The rest takes the virtual address of a mask; none means every hart
      const mask = a[0] === 0n ? BigInt(allHarts(host)) : host.loadVirtual64(a[0]);
      if (mask === undefined) return only(SBI.ERR_INVALID_ADDRESS);
      const harts = hartMask(host, mask, 0n);
      if (harts === undefined) return only(SBI.ERR_INVALID_PARAM);
      if (extension === EXTENSION.SEND_IPI) {
        host.sendIpi(harts);
        return only(0);
      }
      const kinds = new Map<bigint, FenceKind>([
        [EXTENSION.REMOTE_FENCE_I, 'fence.i'],
        [EXTENSION.REMOTE_SFENCE_VMA, 'sfence.vma'],
        [EXTENSION.REMOTE_SFENCE_VMA_ASID, 'sfence.vma.asid'],
      ]);
      const refusal = fence(host, kinds.get(extension)!, harts, a[1], a[2], a[3]);
      return refusal === undefined || refusal === 'retry' || refusal === 'noreturn'
        ? (refusal ?? only(0))
        : only(refusal.error);
    }
  }
}
