export { ControlError } from './control_plane.ts';
export { FileError } from './files.ts';
export { findVm, listVms, type RegisteredVm, type Registration, RegistryError, registerVm } from './registry.ts';
export type { RoleExit } from './role_host.ts';
export type { RoleModule, RoleName } from './role_table.ts';
export {
  type RunningVm,
  type SuperviseOptions,
  supervise,
  type VmEvent,
  type VmExit,
  type VmReport,
} from './supervise.ts';
export {
  checkVmOptions,
  DEFAULT_VM_OPTIONS,
  type DiskSource,
  type FileSource,
  type IcountOptions,
  isVmName,
  MAX_HARTS,
  MAX_RAM_BYTES,
  MIN_RAM_BYTES,
  type NbdSource,
  type VmOptions,
  VmOptionsError,
  type VncOptions,
} from './vm_options.ts';
