import type { Duplex } from 'node:stream';
import type { BlockJobEvent } from './block_control.ts';
import type { RoleExit } from './role_host.ts';
import type { RoleModule, RoleName } from './role_table.ts';
import type { VmOptions } from './vm_options.ts';

export interface SuperviseOptions {
  /** Flags of node for a role's process, e.g. `--no-liftoff` for the machine */
  readonly nodeFlags?: Partial<Record<RoleName, readonly string[]>>;
  /** Other code for a role: tests */
  readonly roleModules?: Partial<Record<RoleName, RoleModule>>;
  /** What happens to roles, in plain words */
  readonly onReport?: (report: VmReport) => void;
}

export type VmReport =
  /** A line that a role wrote, or a thing the user should know */
  | { readonly kind: 'text'; readonly role: RoleName | 'supervisor'; readonly text: string }
  /** A role ended though nobody asked it to */
  | { readonly kind: 'role-ended'; readonly exit: RoleExit; readonly text: string };

/** Why the machine ended. `exitCode` is what a bare-metal guest said, 0 for a clean end, 1 for a failure. */
export interface VmExit {
  readonly reason: 'guest-shutdown' | 'guest-panic' | 'guest-reset' | 'host' | 'failure';
  readonly exitCode: number;
  readonly text?: string;
}

/** Names and data as QMP has them */
export interface VmEvent {
  readonly event:
    | 'STOP'
    | 'RESUME'
    | 'POWERDOWN'
    | 'SHUTDOWN'
    | 'RESET'
    | 'MIGRATION'
    | 'MIGRATION_PASS'
    | BlockJobEvent;
  readonly data: Readonly<Record<string, string | number | boolean>>;
}

/** A machine that runs. */
export interface RunningVm extends AsyncDisposable {
  readonly options: VmOptions;
  readonly uuid: string;
  /** Bytes from and to the guest's serial port */
  readonly serial: Duplex;
  /** See {@link ControlPlane} for the methods */
  call(method: string, params?: unknown): Promise<unknown>;
  onEvent(handler: (event: VmEvent) => void): void;
  /** Settles when the guest has ended or the machine role has failed; never rejects */
  readonly exit: Promise<VmExit>;
  readonly pids: Readonly<Partial<Record<RoleName, number>>>;
  /** Ends all roles. */
  close(): Promise<void>;
}
