import type { RoleMain } from '../shared/role.ts';
import { HartThreads } from './hart_threads.ts';
import type { MachineRoleOptions } from './run_machine.ts';

/**
 * The machine role: the guest and its devices, and nothing else. It holds no path and opens no connection; what it
 * was handed are its links and the contents of its boot files.
 */
export const machineRole: RoleMain<MachineRoleOptions> = async (links, options) => {
  // They load the code of a hart while this thread loads that of the machine: together that is most of a start
  const threads = new HartThreads(options.icount === undefined ? options.harts : 0);
  try {
    const { runMachine } = await import('./run_machine.ts');
    await runMachine(links, options, threads);
  } finally {
    threads.close();
  }
};
