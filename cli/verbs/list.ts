import process from 'node:process';
import { QmpClient } from '../../services/shared/mod.ts';
import { listVms, type RegisteredVm } from '../../services/supervisor/mod.ts';
import { formatBytes, formatDuration } from '../format.ts';
import type { Verb } from '../usage_error.ts';
import { expectOperands, splitFlags } from './client.ts';

const STATUS_TIMEOUT_MS = 2000;

export const listVerb: Verb = {
  name: 'list',
  summary: 'show the machines that run',
  help: `caisson list [--json]
Shows this user's machines that run.

  --json   one JSON object per machine and line
`,
  async run(args) {
    const { operands, flags } = splitFlags('list', args, { '--json': 'flag' });
    expectOperands('list', operands, []);
    const machines = await listVms();
    const statuses = await Promise.all(machines.map(statusOf));
    if (flags.has('--json')) {
      for (const [index, vm] of machines.entries()) {
        process.stdout.write(`${JSON.stringify({ ...vm, status: statuses[index] })}\n`);
      }
      return 0;
    }
    const rows = machines.map((vm, index) => [
      vm.name,
      statuses[index]!,
      String(vm.pid),
      String(vm.harts),
      formatBytes(vm.ramBytes),
      formatDuration(Date.now() - vm.startedMs),
    ]);
    for (const line of table([['NAME', 'STATUS', 'PID', 'HARTS', 'MEMORY', 'AGE'], ...rows])) {
      process.stdout.write(`${line}\n`);
    }
    return 0;
  },
};

async function statusOf(vm: RegisteredVm): Promise<string> {
  try {
    await using client = await QmpClient.connect(vm.qmpPath, { timeoutMs: STATUS_TIMEOUT_MS });
    const { status } = await client.execute('query-status');
    return status;
  } catch {
    return 'no answer'; // it is just starting or ending
  }
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
}
