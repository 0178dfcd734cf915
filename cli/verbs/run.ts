import process from 'node:process';
import { logItemsHelp } from '../log_options.ts';
import { parseVmArguments, vmOptionsHelp } from '../options.ts';
import { runVm } from '../run_vm.ts';
import { UsageError, type Verb } from '../usage_error.ts';

export const runVerb: Verb = {
  name: 'run',
  summary: 'run a machine, with QEMU’s options',
  help: `caisson run [OPTIONS]
Runs a RISC-V machine (-M virt of QEMU) on this terminal. It ends when the guest powers off; its exit status is the
guest's. Options have QEMU's names and grammar: key=value,key=value, a comma in a value is written twice.

${vmOptionsHelp()}

  caisson run -m 1G -smp 2 -kernel Image -initrd initrd -append "console=ttyS0" -nographic
  caisson run -bios none -kernel builtin:firmware -drive file=disk.raw,format=raw -vnc :0,websocket=on
  caisson run … -name two -incoming unix:/tmp/move.sock      then: caisson migrate vm unix:/tmp/move.sock
`,
  async run(args) {
    const log = args.indexOf('-d');
    if (log >= 0 && args[log + 1] === 'help') {
      process.stdout.write(logItemsHelp());
      return 0;
    }
    const { options, named } = parseVmArguments(args);
    if (options.kernel === undefined && options.bios === 'builtin') {
      throw new UsageError(
        'Cannot run a machine without a kernel: add -kernel FILE, or -bios FILE that needs none; our own small guest is caisson demo',
      );
    }
    return runVm(options, { exactName: named });
  },
};
