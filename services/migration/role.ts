import { firstBytes } from '../shared/first_bytes.ts';
import type { RoleMain } from '../shared/role.ts';
import type { MigrationRoleOptions } from './run_migration.ts';

/**
 * Links: `control`, and `ram` to the machine role's `serveMigration()`. The role's code is loaded with its first
 * request: most machines are never moved, and their start should not wait for it.
 */
export const migrationRole: RoleMain<MigrationRoleOptions> = async (links, options) => {
  const { control, ram } = links;
  if (ram === undefined) throw new Error('Cannot start the migration role: it has no ram link');
  if (!(await firstBytes(control))) return;
  const [{ RpcPeer }, { runMigrationRole }] = await Promise.all([
    import('../shared/rpc.ts'),
    import('./run_migration.ts'),
  ]);
  await runMigrationRole(new RpcPeer(control, { name: 'supervisor' }), ram, options);
};
