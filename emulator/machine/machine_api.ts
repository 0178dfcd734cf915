import type { Observable } from 'rxjs';
import type { BlockBackend, CharacterPort, DisplayHead, KeyboardSink, TabletSink } from '../devices/backends.ts';
import type { Engine } from '../hart/hart.ts';
import type { InstructionOptions } from '../icount/parts.ts';
import type { StateValue } from '../state/state.ts';
import type { LogItem } from '../trace/log_items.ts';
import type { BootFile } from './boot.ts';

/** `running` harts execute; `paused` they stand at an instruction boundary; `shutdown` the guest has ended. */
export type MachineStatus =
  | 'prelaunch'
  | 'inmigrate'
  | 'running'
  | 'paused'
  | 'postmigrate'
  | 'shutdown'
  | 'internal-error';

export type MachineEvent =
  | { readonly kind: 'status'; readonly status: MachineStatus }
  /** `exitCode`: what a bare-metal program wrote to the test device, 0 for a clean power-off */
  | { readonly kind: 'shutdown'; readonly reason: 'guest-shutdown' | 'guest-panic' | 'host'; readonly exitCode: number }
  | { readonly kind: 'reset'; readonly reason: 'guest-reset' | 'host' }
  /** A replay has come to the end of its recording; `matches`: the state is the recorded one */
  | {
      readonly kind: 'replay-end';
      readonly matches: boolean;
      readonly instructions: number;
      /** The guest ended itself there: a 'shutdown' follows */
      readonly guestEnded: boolean;
    };

export interface DiskOptions {
  readonly id: string;
  readonly backend: BlockBackend;
  readonly bus: 'virtio-pci' | 'virtio-mmio';
}

export interface MachineOptions {
  /** In `bytes`, a multiple of 2 MiB, at most 3 GiB */
  readonly ramBytes: number;
  /** 1..8 */
  readonly harts: number;
  /** What runs the guest's code; `translator` (default) compiles what is run often */
  readonly engine?: Engine;
  /** `-bios`: 'builtin' is our SBI, 'none' starts the kernel in M-mode, a file is a firmware image */
  readonly bios: 'builtin' | 'none' | BootFile;
  readonly kernel?: BootFile;
  readonly initrd?: BootFile;
  readonly append?: string;
  /** `-dtb`: validated, then used instead of the generated one */
  readonly dtb?: Uint8Array;
  readonly disks: readonly DiskOptions[];
  readonly display: boolean;
  readonly network: boolean;
  /** Adds a virtio console (`hvc0` of Linux) beside the serial port */
  readonly virtioConsole?: boolean;
  readonly name?: string;
  readonly uuid?: string;
  /** All harts on one thread, time by their instructions, input between their runs */
  readonly icount?: InstructionOptions;
  /** `-d`: what the harts log; the platform takes the text */
  readonly log?: readonly LogItem[];
  /** Take samples of what the harts execute, for `Machine.profile()` */
  readonly profile?: boolean;
  /** More names for addresses than the kernel brings, for log and profile: ELF or System.map */
  readonly symbols?: readonly Uint8Array[];
}

export interface MachineState {
  /** Manifest of what the state belongs to; compared before anything is loaded */
  readonly config: StateValue;
  /** By `stateName`: version and state of every device and hart */
  readonly devices: readonly { readonly name: string; readonly version: number; readonly state: StateValue }[];
}

/** The migration's bit of the dirty map; a store sets all bits, each consumer clears its own (0x80 is the code cache's). */
export const DIRTY_MIGRATION = 0x01;

/** The machine as services see it. */
export interface MachineApi {
  readonly options: MachineOptions;
  readonly status: MachineStatus;
  readonly events: Observable<MachineEvent>;
  readonly serial: CharacterPort;
  readonly virtioConsole?: CharacterPort | undefined;
  readonly display: DisplayHead | undefined;
  readonly keyboard: KeyboardSink | undefined;
  readonly tablet: TabletSink | undefined;
  readonly ramBytes: number;

  start(): void;
  /** Resolves when all harts stand and no device request is in flight */
  pause(): Promise<void>;
  resume(): void;
  reset(): void;
  /** Asks the guest to power off (gpio-keys or SBI system event); it may ignore that */
  powerdown(): void;
  close(): Promise<void>;

  /** Live bytes of RAM, for the migration: copy before checking or compressing */
  ram(offset: number, lengthBytes: number): Uint8Array;
  /**
   * Collects and clears one consumer's dirty bits: page indices, ascending, at most `maxPages` from `fromPage`.
   * Clear happens before the caller copies the page, so a racing store is seen again.
   */
  harvestDirty(consumer: number, fromPage: number, maxPages: number): Uint32Array;
  /** Marks all pages dirty for the consumer: the first pass */
  markAllDirty(consumer: number): void;
  /** Stores pages of an incoming migration; only before `start()` */
  loadRam(offset: number, bytes: Uint8Array): void;
  /** 0..99: share of time the harts must sleep, for auto-converge */
  setThrottle(percent: number): void;

  /** What a state of this machine belongs to, at any time: for the manifest of a migration or snapshot */
  describeState(): {
    readonly config: StateValue;
    readonly devices: readonly { readonly name: string; readonly version: number }[];
  };
  /** Only while paused */
  saveState(): MachineState;
  /** @throws StateError; nothing is changed then. The closure applies it. */
  prepareState(state: MachineState): () => void;
}
