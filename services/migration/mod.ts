export { connectMigration, listenMigration, type MigrationListener } from './connection.ts';
export { DEFAULT_DESTINATION_LIMITS, type DestinationLimits, MigrationDestination } from './destination.ts';
export { MachineClient, MachineFault } from './machine_client.ts';
export { MigrationError, type MigrationErrorCode } from './migration_error.ts';
export { DEFAULT_PARAMETERS, type MigrationParameters, mergeParameters } from './parameters.ts';
export { type MigrationProgress, type MigrationStatus, toQueryMigrate } from './progress.ts';
export { type MigrationRoleOptions, migrationRole, runMigrationRole } from './role.ts';
export { MigrationSource, type MigrationSourceOptions } from './source.ts';
export { formatMigrationUri, type MigrationAddress, parseMigrationUri } from './uri.ts';
