import { DEFAULT_VM_OPTIONS, type VmOptions } from '../../services/supervisor/mod.ts';
import { demoMigrate } from '../demo_migrate.ts';
import { runVm } from '../run_vm.ts';
import { UsageError, type Verb } from '../usage_error.ts';

export const demoVerb: Verb = {
  name: 'demo',
  summary: 'run our own small guest, nothing to download; demo migrate moves it',
  help: `caisson demo [migrate] [--embedded]
Runs the embedded firmware: a prompt here, a picture on the console page. Type help at its prompt.

  caisson demo migrate    starts two machines, lets the guest write memory as fast as it can, moves it from one to the
                          other while it runs, and proves by the guest's own checksum that nothing was lost
  --embedded              all roles in one process, without isolation
`,
  async run(args) {
    const isolation = args.includes('--embedded') ? 'embedded' : 'processes';
    const operands = args.filter((word) => word !== '--embedded');
    if (operands.length === 0) return runVm(demoOptions('demo', isolation));
    if (operands.length === 1 && operands[0] === 'migrate') {
      return demoMigrate(demoOptions('demo-source', isolation), demoOptions('demo-destination', isolation));
    }
    throw new UsageError(`Cannot run demo ${operands.join(' ')}: expected nothing or migrate`);
  },
};

function demoOptions(name: string, isolation: VmOptions['isolation']): VmOptions {
  return {
    ...DEFAULT_VM_OPTIONS,
    name,
    isolation,
    bios: 'none',
    kernel: { builtin: 'firmware' },
    vnc: { host: '127.0.0.1', webPort: 0 },
  };
}
