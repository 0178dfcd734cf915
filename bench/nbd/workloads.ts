import type { Group } from './options.ts';

export type Transport = 'unix' | 'tcp' | 'tls';
/** `qemu kept`: qemu-nbd whose glibc is told to keep its memory */
export type ServerName =
  | 'ours'
  | 'qemu-nbd'
  | 'qemu io_uring'
  | 'qemu kept'
  | 'nbdkit'
  | 'nbdkit --no-sr'
  | 'ours, raw';
/** Operations or bytes a second; the median latency; the server's processor time an operation or a GB */
export type Figure = 'rate' | 'p50' | 'CPU' | 'client';

/** How much better than a peer we must be, and want to be: ours ÷ theirs for rates, theirs ÷ ours for times. */
export interface Goal {
  readonly figure: Figure;
  readonly against: ServerName;
  /** Undefined: a wish only */
  readonly must: number | undefined;
  readonly aim?: number;
}

export type Client =
  | {
      readonly kind: 'fio';
      readonly rw: string;
      readonly blockBytes: number;
      readonly depth: number;
      readonly jobs: number;
    }
  /** nbdcopy, whole image, 16 requests at once on each connection */
  | { readonly kind: 'copy'; readonly to: 'null' | 'server'; readonly blockBytes: number; readonly connections: number }
  /** `qemu-img bench`, which speaks TLS with keys where fio does not */
  | { readonly kind: 'qemu-img'; readonly rw: 'read' | 'write'; readonly blockBytes: number; readonly depth: number };

export interface Workload {
  readonly name: string;
  readonly group: Group;
  readonly transport: Transport;
  /** Image on tmpfs; on the file system of the temporary folder, cached; the same with its cache dropped */
  readonly storage: 'memory' | 'file' | 'cold';
  readonly format: 'raw' | 'qcow2';
  /** Ours with simple replies, as the goals of many small reads were set; the others as they are by themselves */
  readonly simple: boolean;
  readonly client: Client;
  readonly servers: readonly ServerName[];
  readonly goals: readonly Goal[];
}

const PEERS: readonly ServerName[] = ['ours', 'qemu-nbd', 'qemu io_uring', 'nbdkit'];
/** Where requests are so large that glibc maps fresh memory for each: what that costs is the host's, so say it */
const LARGE_PEERS: readonly ServerName[] = [...PEERS, 'qemu kept'];
const KIB = 1024;
const MIB = 1024 * KIB;

const goal = (figure: Figure, against: ServerName, must: number | undefined, aim?: number): Goal => ({
  figure,
  against,
  must,
  ...(aim === undefined ? {} : { aim }),
});
const DEEP_READ = [
  goal('rate', 'qemu-nbd', 2.5, 3.5),
  goal('rate', 'qemu io_uring', 1.8, 2.1),
  goal('rate', 'nbdkit', 1.3, 1.8),
];
const MANY = [goal('rate', 'qemu-nbd', 3, 5), goal('rate', 'nbdkit', 1)];
const DEEP_WRITE = [goal('rate', 'qemu-nbd', 2.5, 3), goal('rate', 'nbdkit', 1.3)];
const FIRST_READ = [goal('p50', 'qemu-nbd', 1.54, 2), goal('p50', 'nbdkit', 1, 1.25)];
const LARGE_READ = [
  goal('rate', 'qemu-nbd', 2, 3),
  goal('rate', 'nbdkit', 1, 1.5),
  goal('CPU', 'qemu-nbd', 2.86, 4),
  goal('CPU', 'nbdkit', 1.11),
];
const TLS_READ = [goal('rate', 'qemu-nbd', 2.5, 3.5), goal('rate', 'nbdkit', 2.5, 3.5)];

type Extra = Partial<Pick<Workload, 'transport' | 'storage' | 'format' | 'simple' | 'servers'>>;

const row = (group: Group, name: string, client: Client, goals: readonly Goal[], extra: Extra = {}): Workload => ({
  name,
  group,
  transport: 'unix',
  storage: 'memory',
  format: 'raw',
  simple: false,
  client,
  servers: client.blockBytes > 4096 ? LARGE_PEERS : PEERS,
  goals,
  ...extra,
});
const random = (rw: 'randread' | 'randwrite', depth: number, jobs = 1): Client => ({
  kind: 'fio',
  rw,
  blockBytes: 4 * KIB,
  depth,
  jobs,
});
const sequential = (rw: 'read' | 'write', blockBytes: number, jobs = 1): Client => ({
  kind: 'fio',
  rw,
  blockBytes,
  depth: 16,
  jobs,
});
const copy = (to: 'null' | 'server', connections = 1, blockBytes = MIB): Client => ({
  kind: 'copy',
  to,
  blockBytes,
  connections,
});
const bench = (rw: 'read' | 'write', depth: number): Client => ({ kind: 'qemu-img', rw, blockBytes: 4 * KIB, depth });

const [TCP, TLS] = [{ transport: 'tcp' }, { transport: 'tls' }] as const;
const FILE = { storage: 'file' } as const;
const SIMPLE = { simple: true, servers: [...PEERS, 'nbdkit --no-sr'] } as const;
const COLD = { storage: 'cold' } as const;
const QCOW2 = { format: 'qcow2', servers: ['ours', 'ours, raw', 'qemu-nbd', 'qemu io_uring'] } as const;

/** Every row with what must be reached in it. */
export const WORKLOADS: readonly Workload[] = [
  row('random', 'read 4K QD1', random('randread', 1), FIRST_READ),
  row('random', 'read 4K QD16', random('randread', 16), DEEP_READ),
  row('random', 'read 4K QD64', random('randread', 64), DEEP_READ),
  row('random', 'read 4K QD16, --no-sr', random('randread', 16), DEEP_READ, SIMPLE),
  row('random', 'read 4K QD64, --no-sr', random('randread', 64), DEEP_READ, SIMPLE),
  row('random', 'read 4K 4×QD1', random('randread', 1, 4), []),
  row('random', 'read 4K 4×QD16', random('randread', 16, 4), MANY),
  row('random', 'read 4K 4×QD64', random('randread', 64, 4), []),
  row('random', 'write 4K QD1', random('randwrite', 1), []),
  row('random', 'write 4K QD16', random('randwrite', 16), []),
  row('random', 'write 4K QD64', random('randwrite', 64), DEEP_WRITE),
  row('random', 'write 4K 4×QD16', random('randwrite', 16, 4), []),
  row('sequential', 'read 128K', sequential('read', 128 * KIB), []),
  row('sequential', 'read 1M', sequential('read', MIB), LARGE_READ),
  row('sequential', 'read 1M 4×', sequential('read', MIB, 4), []),
  row('sequential', 'write 128K', sequential('write', 128 * KIB), [
    goal('rate', 'qemu-nbd', 2),
    goal('rate', 'nbdkit', undefined, 1),
  ]),
  row('sequential', 'write 1M', sequential('write', MIB), [
    goal('rate', 'qemu-nbd', 1),
    goal('rate', 'nbdkit', undefined, 1),
  ]),
  row('sequential', 'write 1M 4×', sequential('write', MIB, 4), []),
  row('sequential', 'copy out 1M', copy('null'), []),
  row('sequential', 'copy out 1M 4×', copy('null', 4), []),
  row('sequential', 'copy in 1M', copy('server'), []),
  row('tcp', 'read 4K QD1, TCP', random('randread', 1), [], TCP),
  row('tcp', 'read 4K QD16, TCP', random('randread', 16), [], TCP),
  row('tcp', 'read 4K QD64, TCP', random('randread', 64), [], TCP),
  row('tcp', 'read 4K 4×QD16, TCP', random('randread', 16, 4), [], TCP),
  row('tcp', 'write 4K QD64, TCP', random('randwrite', 64), [], TCP),
  row('tcp', 'read 128K, TCP', sequential('read', 128 * KIB), [], TCP),
  row('tcp', 'read 1M, TCP', sequential('read', MIB), [], TCP),
  row('tcp', 'write 128K, TCP', sequential('write', 128 * KIB), [], TCP),
  row('tcp', 'write 1M, TCP', sequential('write', MIB), [], TCP),
  row('tls', 'read 4K QD1, TLS', bench('read', 1), [], TLS),
  row('tls', 'read 4K QD16, TLS', bench('read', 16), [], TLS),
  row('tls', 'write 4K QD16, TLS', bench('write', 16), [], TLS),
  row('tls', 'copy out 128K, TLS', copy('null', 1, 128 * KIB), [], TLS),
  row('tls', 'copy out 1M, TLS', copy('null'), TLS_READ, TLS),
  row('tls', 'copy out 1M 4×, TLS', copy('null', 4), [], TLS),
  row('tls', 'copy in 1M, TLS', copy('server'), [], TLS),
  row('file', 'read 4K QD1, cached file', random('randread', 1), [goal('p50', 'qemu io_uring', 1, 1.25)], FILE),
  row('file', 'read 4K QD16, cached file', random('randread', 16), DEEP_READ, FILE),
  row('file', 'read 4K QD64, cached file', random('randread', 64), DEEP_READ, FILE),
  row('file', 'read 4K QD16, cached file, --no-sr', random('randread', 16), DEEP_READ, { ...FILE, ...SIMPLE }),
  row('file', 'read 4K QD64, cached file, --no-sr', random('randread', 64), DEEP_READ, { ...FILE, ...SIMPLE }),
  row('file', 'read 4K QD1, cold file', random('randread', 1), [], COLD),
  row('file', 'read 4K QD16, cold file', random('randread', 16), [goal('rate', 'qemu-nbd', 0.9, 1)], COLD),
  row('file', 'read 4K QD64, cold file', random('randread', 64), [goal('rate', 'qemu-nbd', 0.9, 1)], COLD),
  row('qcow2', 'read 4K QD16, qcow2', random('randread', 16), [goal('rate', 'ours, raw', 0.85, 0.95)], QCOW2),
  row('qcow2', 'write 4K QD64, qcow2', random('randwrite', 64), [], QCOW2),
];
