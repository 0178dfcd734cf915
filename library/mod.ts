export type { VmEvent, VmExit, VmOptions } from '../services/supervisor/mod.ts';
export {
  Machine,
  MachineError,
  type MachineOptions,
  type MigrateOptions,
  type MigrationReport,
} from './machine.ts';
