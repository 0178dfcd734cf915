import { resolve } from 'node:path';
import { type FileSource, isVmName, MAX_HARTS, type VmOptions } from '../services/supervisor/mod.ts';
import { parseTlsObject, type TlsObject } from './block_devices.ts';
import { addBlockNode, type BlockNode, type Drive, parseDrive } from './drives.ts';
import { parseIcount } from './icount_option.ts';
import { KeyValues } from './key_value.ts';
import { type LogItem, parseLogItems } from './log_options.ts';
import { parseInteger, parseSize } from './numbers.ts';
import { isSecret, parseSecret, type SecretObject } from './secrets.ts';
import { parseQmp, parseVnc } from './server_options.ts';
import { UsageError } from './usage_error.ts';

/** What one pass over the words collects; defaults and checks across options come after. */
export interface Draft {
  options: { -readonly [K in keyof VmOptions]?: VmOptions[K] };
  drives: Drive[];
  nodes: Map<string, BlockNode>;
  devices: KeyValues[];
  objects: TlsObject[];
  secrets: SecretObject[];
  serial: 'stdio' | 'none' | undefined;
  headless: boolean;
  snapshot: boolean;
  readonly logItems: LogItem[];
  logFile: string | undefined;
}

export interface Rule {
  /** Name of the value in the help; absent: the option has none */
  readonly value?: string;
  readonly help: string;
  take(draft: Draft, value: string): void;
}

const file = (path: string): FileSource =>
  path === 'builtin:firmware' ? { builtin: 'firmware' } : { file: resolve(path) };

/** Every option of the command line, QEMU's words */
export const RULES: Readonly<Record<string, Rule>> = {
  '-M': {
    value: 'virt',
    help: 'the machine; there is one, QEMU’s virt',
    take: (_, value) => {
      const keys = new KeyValues('-M', value, 'type');
      if (keys.require('type') !== 'virt') throw new UsageError(`Cannot make machine ${value}: expected virt`);
      keys.end();
    },
  },
  '-m': {
    value: 'SIZE',
    help: 'memory: 512M, 1G, or a number of MiB (default 128M)',
    take: ({ options }, value) => {
      const keys = new KeyValues('-m', value, 'size');
      options.ramBytes = parseSize('-m', keys.require('size'), 2 ** 20);
      keys.end();
    },
  },
  '-smp': {
    value: 'N',
    help: `harts, 1..${MAX_HARTS} (default 1)`,
    take: ({ options }, value) => {
      const keys = new KeyValues('-smp', value, 'cpus');
      options.harts = parseInteger('-smp', keys.require('cpus'), 1, MAX_HARTS);
      keys.end();
    },
  },
  '-accel': {
    value: 'tcg|interpreter',
    help: 'tcg: translate code that runs often (default); interpreter: nothing is compiled',
    take: ({ options }, value) => {
      const keys = new KeyValues('-accel', value, 'accel');
      const accel = keys.require('accel');
      keys.end();
      if (accel !== 'tcg' && accel !== 'interpreter') {
        throw new UsageError(`Cannot use accelerator ${accel}: expected tcg or interpreter`);
      }
      options.engine = accel === 'tcg' ? 'translator' : 'interpreter';
    },
  },
  '-bios': {
    value: 'builtin|none|FILE',
    help: 'firmware; none starts the kernel in M-mode (default builtin)',
    take: ({ options }, value) => {
      options.bios = value === 'default' || value === 'builtin' ? 'builtin' : value === 'none' ? 'none' : file(value);
    },
  },
  '-kernel': {
    value: 'FILE',
    help: 'Image, compressed Image or ELF (builtin:firmware is ours)',
    take: ({ options }, value) => {
      options.kernel = file(value);
    },
  },
  '-initrd': {
    value: 'FILE',
    help: 'initial RAM disk',
    take: ({ options }, value) => {
      options.initrd = file(value);
    },
  },
  '-append': {
    value: 'TEXT',
    help: 'kernel command line',
    take: ({ options }, value) => {
      options.append = value;
    },
  },
  '-dtb': {
    value: 'FILE',
    help: 'device tree instead of ours',
    take: ({ options }, value) => {
      options.dtb = file(value);
    },
  },
  '-drive': {
    value:
      'file=FILE|nbd://…,format=raw|qcow2|luks[,if=virtio|none][,id=ID][,readonly=on][,snapshot=on][,throttling.iops-total=N…]',
    help: 'disk, also of an NBD server [,reconnect-delay=S][,tls-creds=ID]; format is never guessed, and what is under a qcow2 image is said: backing.driver=F,backing.file.filename=FILE, or backing-root=FOLDER to follow the names inside it',
    take: ({ drives }, value) => void drives.push(parseDrive(value)),
  },
  '-blockdev': {
    value: 'driver=raw|qcow2|file|nbd,node-name=ID,file=NODE|file.filename=FILE[,backing=NODE][,read-only=on]',
    help: 'disk for a -device with drive=ID, also as JSON; driver=nbd has server.type=inet|unix,…[,export=NAME]',
    take: ({ nodes }, value) => addBlockNode(nodes, value),
  },
  '-object': {
    value: 'tls-creds-x509|tls-creds-psk,id=ID,dir=FOLDER,endpoint=client | secret,id=ID,file=FILE[,format=base64]',
    help: 'credentials for the tls-creds= of an NBD disk; passphrase for the key-secret= of a luks disk, the encrypt.key-secret= of a qcow2 one',
    take: ({ objects, secrets }, value) =>
      void (isSecret(value) ? secrets.push(parseSecret('-object', value)) : objects.push(parseTlsObject(value))),
  },
  '-device': {
    value: 'virtio-blk-pci|virtio-blk-device,drive=ID|virtconsole|virtio-net-pci',
    help: 'device for a drive with if=none; virtconsole: the terminal is hvc0; virtio-net-pci: a card without a network',
    take: ({ devices }, value) => void devices.push(new KeyValues('-device', value, 'driver')),
  },
  '-serial': {
    value: 'stdio|none',
    help: 'the serial port is this terminal, or nothing (default stdio)',
    take: (draft, value) => {
      if (value !== 'stdio' && value !== 'mon:stdio' && value !== 'none') {
        throw new UsageError(`Cannot connect -serial to ${value}: expected stdio or none`);
      }
      draft.serial = value === 'none' ? 'none' : 'stdio';
    },
  },
  '-nographic': {
    help: 'no display; the serial port is this terminal',
    take: (draft) => {
      draft.headless = true;
    },
  },
  '-display': {
    value: 'none',
    help: 'no display, unless -vnc asks for one',
    take: (draft, value) => {
      if (value !== 'none')
        throw new UsageError(`Cannot use -display ${value}: expected none (screens are seen with -vnc)`);
      draft.headless = true;
    },
  },
  '-vnc': {
    value: '[HOST]:N[,websocket=on|PORT]',
    help: 'RFB on port 5900+N; websocket: page for a browser on port 5700+N',
    take: ({ options }, value) => {
      options.vnc = parseVnc(value);
    },
  },
  '-qmp': {
    value: 'unix:PATH[,server=on][,wait=off]',
    help: 'one more monitor socket',
    take: ({ options }, value) => {
      options.qmp = [...(options.qmp ?? []), parseQmp(value)];
    },
  },
  '-incoming': {
    value: 'tcp:HOST:PORT|unix:PATH|defer',
    help: 'wait for a migration instead of starting',
    take: ({ options }, value) => {
      if (value !== 'defer' && !/^(tcp|unix):./.test(value)) {
        throw new UsageError(`Cannot wait on -incoming ${value}: expected tcp:HOST:PORT, unix:PATH or defer`);
      }
      options.incoming = value.startsWith('unix:') ? `unix:${resolve(value.slice(5))}` : value;
    },
  },
  '-S': {
    help: 'wait for the monitor’s cont',
    take: ({ options }) => {
      options.paused = true;
    },
  },
  '-name': {
    value: 'NAME',
    help: 'name for caisson list, stop, migrate … (default vm)',
    take: ({ options }, value) => {
      const keys = new KeyValues('-name', value, 'guest');
      options.name = keys.require('guest');
      keys.end();
      if (!isVmName(options.name)) {
        throw new UsageError(`Cannot use -name ${value}: expected 1..64 letters, digits, _ . -`);
      }
    },
  },
  '-uuid': {
    value: 'UUID',
    help: 'the guest’s UUID',
    take: ({ options }, value) => {
      options.uuid = value;
    },
  },
  '-snapshot': {
    help: 'disks stay as they are; what the guest writes is forgotten',
    take: (draft) => {
      draft.snapshot = true;
    },
  },
  '-no-reboot': {
    help: 'a guest’s reset ends the machine',
    take: ({ options }) => {
      options.noReboot = true;
    },
  },
  '-no-shutdown': {
    help: 'after the guest’s end wait for quit',
    take: ({ options }) => {
      options.noShutdown = true;
    },
  },
  '-d': {
    value: 'ITEM[,…]',
    help: 'log what the guest does: in_asm, int, mmu, guest_errors …; -d help lists all',
    take: (draft, value) => void draft.logItems.push(...parseLogItems(value)),
  },
  '-D': {
    value: 'FILE',
    help: 'the log goes to FILE, which is overwritten (default: standard error)',
    take: (draft, value) => {
      draft.logFile = resolve(value);
    },
  },
  '-icount': {
    value: '[shift=]N|auto[,sleep=on|off][,rr=record|replay,rrfile=FILE]',
    help: 'all harts on one thread, 2^N ns each instruction: runs can be repeated; rr: record what comes in, or replay it',
    take: ({ options }, value) => {
      options.icount = parseIcount(value);
    },
  },
  '-profile': {
    value: 'FILE',
    help: 'at the end, a flame graph of what the guest executed, for a browser; folded stacks if FILE ends in .folded',
    take: ({ options }, value) => {
      options.profile = resolve(value);
    },
  },
  '-symbols': {
    value: 'FILE',
    help: 'ELF or System.map: names for addresses in logs and profiles, besides the kernel’s own',
    take: ({ options }, value) => {
      options.symbols = [...(options.symbols ?? []), resolve(value)];
    },
  },
  '--embedded': {
    help: 'all roles in one process, without isolation',
    take: ({ options }) => {
      options.isolation = 'embedded';
    },
  },
};

/** Other words for the same */
export const ALIASES: Readonly<Record<string, string>> = {
  '-machine': '-M',
  '--nographic': '-nographic',
  '-embedded': '--embedded',
};
