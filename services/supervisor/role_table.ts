import type { RoleMain } from '../shared/role.ts';

export const ROLE_NAMES = ['machine', 'disk', 'console', 'migration', 'monitor'] as const;
export type RoleName = (typeof ROLE_NAMES)[number];

/** Where a role's main function is: a module URL and the name of its export */
export interface RoleModule {
  readonly url: string;
  readonly exportName: string;
}

/** Same folder layout in the clone (.ts) and in the published package (.js) */
const EXTENSION = import.meta.url.slice(import.meta.url.lastIndexOf('.'));

function roleModule(folder: string, exportName: string): RoleModule {
  return { url: new URL(`../${folder}/role${EXTENSION}`, import.meta.url).href, exportName };
}

export const ROLE_MODULES: Readonly<Record<RoleName, RoleModule>> = {
  machine: roleModule('machine', 'machineRole'),
  disk: roleModule('nbd', 'diskRole'),
  console: roleModule('vnc', 'consoleRole'),
  migration: roleModule('migration', 'migrationRole'),
  monitor: roleModule('monitor', 'monitorRole'),
};

/** Loaded only where the role runs: no process carries another role's code. */
export async function loadRole(module: RoleModule): Promise<RoleMain<unknown>> {
  const exports: Record<string, unknown> = await import(module.url);
  const main = exports[module.exportName];
  if (typeof main !== 'function') throw new Error(`Cannot load ${module.url}: it has no ${module.exportName}`);
  return main as RoleMain<unknown>;
}
