import type { Duplex } from 'node:stream';
import type { MachineApi } from '../../emulator/machine/machine_api.ts';
import { firstBytes } from '../shared/first_bytes.ts';
import type { MigrationHooks, MigrationLinkServer } from './migration_link.ts';

/** What knows when the guest must not run here */
export type RunGuard = Pick<MigrationLinkServer, 'blocksRun'>;

/**
 * `serveMigration()`, loaded when the migration role says its first word: most machines are never moved, and what moves
 * them is a quarter of the code that the machine's process would load before its guest starts.
 */
export function awaitMigration(link: Duplex, machine: MachineApi, hooks: MigrationHooks): RunGuard {
  let server: MigrationLinkServer | undefined;
  void firstBytes(link).then(async (any) => {
    if (!any) return;
    const { serveMigration } = await import('./migration_link.ts');
    server = serveMigration(link, machine, hooks);
  });
  return { blocksRun: () => server?.blocksRun() };
}
