import type { QmpSchema } from './schema_types.ts';

/**
 * The one schema: what is validated, what `query-qmp-schema` tells and what TypeScript knows come from here.
 * Names and shapes are those of QEMU's QAPI schema where the command is QEMU's; `*name` is optional.
 * A command, argument or value that is not here is refused.
 */
export const QMP_SCHEMA = {
  types: {
    // ---- control -------------------------------------------------------------------------------------------
    QMPCapability: { enum: ['oob'] },
    VersionTriple: { struct: { major: 'int', minor: 'int', micro: 'int' } },
    VersionInfo: { struct: { qemu: 'VersionTriple', package: 'str' } },
    CommandInfo: { struct: { name: 'str' } },
    NameInfo: { struct: { '*name': 'str' } },
    UuidInfo: { struct: { UUID: 'str' } },
    SysEmuTarget: { enum: ['riscv64'] },
    TargetInfo: { struct: { arch: 'SysEmuTarget' } },
    KvmInfo: { struct: { enabled: 'bool', present: 'bool' } },
    // ---- run state -----------------------------------------------------------------------------------------
    RunState: {
      enum: [
        'prelaunch',
        'inmigrate',
        'running',
        'paused',
        'finish-migrate',
        'postmigrate',
        'shutdown',
        'internal-error',
      ],
    },
    StatusInfo: { struct: { running: 'bool', singlestep: 'bool', status: 'RunState' } },
    ShutdownCause: {
      enum: [
        'none',
        'host-error',
        'host-qmp-quit',
        'host-qmp-system-reset',
        'host-signal',
        'host-ui',
        'guest-shutdown',
        'guest-reset',
        'guest-panic',
      ],
    },
    CpuInstanceProperties: { struct: { '*core-id': 'int' } },
    CpuInfoFast: {
      struct: {
        'cpu-index': 'int',
        'qom-path': 'str',
        'thread-id': 'int',
        '*props': 'CpuInstanceProperties',
        target: 'SysEmuTarget',
      },
    },
    // ---- statistics ----------------------------------------------------------------------------------------
    StatsType: { enum: ['cumulative', 'instant', 'peak', 'linear-histogram', 'log2-histogram'] },
    StatsUnit: { enum: ['bytes', 'seconds', 'cycles'] },
    /** QEMU's only one is 'kvm' */
    StatsProvider: { enum: ['caisson'] },
    StatsTarget: { enum: ['vm', 'vcpu'] },
    StatsRequest: { struct: { provider: 'StatsProvider', '*names': ['str'] } },
    StatsVMFilter: { struct: {} },
    StatsVCPUFilter: { struct: { '*vcpus': ['str'] } },
    StatsFilter: {
      union: {
        base: { target: 'StatsTarget', '*providers': ['StatsRequest'] },
        discriminator: 'target',
        variants: { vm: 'StatsVMFilter', vcpu: 'StatsVCPUFilter' },
      },
    },
    Stats: { struct: { name: 'str', value: 'size' } },
    StatsResult: { struct: { provider: 'StatsProvider', '*qom-path': 'str', stats: ['Stats'] } },
    StatsSchemaValue: {
      struct: { name: 'str', type: 'StatsType', '*unit': 'StatsUnit', '*base': 'int', exponent: 'int' },
    },
    StatsSchema: { struct: { provider: 'StatsProvider', target: 'StatsTarget', stats: ['StatsSchemaValue'] } },
    // ---- block ---------------------------------------------------------------------------------------------
    ImageInfo: { struct: { filename: 'str', format: 'str', 'virtual-size': 'int', '*actual-size': 'int' } },
    BlockDeviceInfo: {
      struct: { file: 'str', '*node-name': 'str', ro: 'bool', drv: 'str', encrypted: 'bool', image: 'ImageInfo' },
    },
    BlockInfo: {
      struct: {
        device: 'str',
        '*qdev': 'str',
        type: 'str',
        removable: 'bool',
        locked: 'bool',
        '*inserted': 'BlockDeviceInfo',
      },
    },
    InetSocketAddressWrapper: { struct: { host: 'str', port: 'str', '*ipv4': 'bool', '*ipv6': 'bool' } },
    UnixSocketAddressWrapper: { struct: { path: 'str' } },
    SocketAddressType: { enum: ['inet', 'unix'] },
    InetSocketAddressData: { struct: { data: 'InetSocketAddressWrapper' } },
    UnixSocketAddressData: { struct: { data: 'UnixSocketAddressWrapper' } },
    SocketAddressLegacy: {
      union: {
        base: { type: 'SocketAddressType' },
        discriminator: 'type',
        variants: { inet: 'InetSocketAddressData', unix: 'UnixSocketAddressData' },
      },
    },
    NbdServerRemoveMode: { enum: ['safe', 'hard'] },
    BlockExportType: { enum: ['nbd'] },
    BlockExportOptionsNbd: { struct: { '*name': 'str', '*description': 'str' } },
    BlockExportOptions: {
      union: {
        base: { type: 'BlockExportType', id: 'str', 'node-name': 'str', '*writable': 'bool', '*writethrough': 'bool' },
        discriminator: 'type',
        variants: { nbd: 'BlockExportOptionsNbd' },
      },
    },
    BlockExportInfo: { struct: { id: 'str', type: 'BlockExportType', 'node-name': 'str', 'shutting-down': 'bool' } },
    // ---- display -------------------------------------------------------------------------------------------
    ImageFormat: { enum: ['ppm', 'png'] },
    NetworkAddressFamily: { enum: ['ipv4', 'ipv6', 'unix', 'unknown'] },
    VncClientInfo: { struct: { host: 'str', service: 'str', family: 'NetworkAddressFamily', websocket: 'bool' } },
    VncInfo: {
      struct: {
        enabled: 'bool',
        '*host': 'str',
        '*family': 'NetworkAddressFamily',
        '*service': 'str',
        '*auth': 'str',
        '*clients': ['VncClientInfo'],
      },
    },
    ConsoleListenInfo: { struct: { url: 'str', port: 'int' } },
    // ---- migration -----------------------------------------------------------------------------------------
    MigrationStatus: {
      enum: ['none', 'setup', 'cancelling', 'cancelled', 'active', 'completed', 'failed', 'pre-switchover', 'device'],
    },
    MigrationStats: {
      struct: {
        transferred: 'int',
        remaining: 'int',
        total: 'int',
        duplicate: 'int',
        skipped: 'int',
        normal: 'int',
        'normal-bytes': 'int',
        'dirty-pages-rate': 'int',
        mbps: 'number',
        'dirty-sync-count': 'int',
        'postcopy-requests': 'int',
        'page-size': 'int',
        'multifd-bytes': 'int',
        'pages-per-second': 'int',
        'precopy-bytes': 'int',
        'downtime-bytes': 'int',
        'postcopy-bytes': 'int',
        'dirty-sync-missed-zero-copy': 'int',
      },
    },
    MigrationInfo: {
      struct: {
        '*status': 'MigrationStatus',
        '*ram': 'MigrationStats',
        '*total-time': 'int',
        '*expected-downtime': 'int',
        '*downtime': 'int',
        '*setup-time': 'int',
        '*cpu-throttle-percentage': 'int',
        '*error-desc': 'str',
      },
    },
    DeadlineAction: { enum: ['cancel', 'stop-and-copy'] },
    MigrationParameters: {
      struct: {
        '*max-bandwidth': 'size',
        '*downtime-limit': 'size',
        '*auto-converge': 'bool',
        '*cpu-throttle-initial': 'uint8',
        '*cpu-throttle-increment': 'uint8',
        '*max-cpu-throttle': 'uint8',
        '*max-passes': 'uint32',
        '*deadline': 'uint32',
        '*at-deadline': 'DeadlineAction',
        '*switchover-timeout': 'uint32',
        '*verify-ram': 'bool',
        '*allow-plaintext': 'bool',
      },
    },
    MigrationUri: { struct: { uri: 'str' } },
    // ---- introspection -------------------------------------------------------------------------------------
    SchemaInfo: { struct: { name: 'str', 'meta-type': 'str' } },
  },
  commands: {
    qmp_capabilities: { arguments: { '*enable': ['QMPCapability'] } },
    'query-version': { returns: 'VersionInfo' },
    'query-commands': { returns: ['CommandInfo'] },
    'query-qmp-schema': { returns: ['SchemaInfo'] },
    'query-name': { returns: 'NameInfo' },
    'query-uuid': { returns: 'UuidInfo' },
    'query-target': { returns: 'TargetInfo' },
    'query-kvm': { returns: 'KvmInfo' },
    'query-status': { returns: 'StatusInfo' },
    'query-cpus-fast': { returns: ['CpuInfoFast'] },
    'query-stats': { arguments: 'StatsFilter', returns: ['StatsResult'] },
    'query-stats-schemas': { arguments: { '*provider': 'StatsProvider' }, returns: ['StatsSchema'] },
    stop: {},
    cont: {},
    quit: {},
    system_reset: {},
    system_powerdown: {},
    'query-block': { returns: ['BlockInfo'] },
    'nbd-server-start': {
      arguments: {
        addr: 'SocketAddressLegacy',
        '*tls-creds': 'str',
        '*tls-authz': 'str',
        '*max-connections': 'uint32',
      },
    },
    'nbd-server-add': {
      arguments: { device: 'str', '*name': 'str', '*description': 'str', '*writable': 'bool', '*bitmap': 'str' },
    },
    'nbd-server-remove': { arguments: { name: 'str', '*mode': 'NbdServerRemoveMode' } },
    'nbd-server-stop': {},
    'block-export-add': { arguments: 'BlockExportOptions' },
    'block-export-del': { arguments: { id: 'str', '*mode': 'NbdServerRemoveMode' } },
    'query-block-exports': { returns: ['BlockExportInfo'] },
    'query-vnc': { returns: 'VncInfo' },
    /** Ours: opens the console where `-vnc` did not, and gives the page's address with a fresh token */
    __caisson_console: { returns: 'ConsoleListenInfo' },
    screendump: { arguments: { filename: 'str', '*device': 'str', '*head': 'int', '*format': 'ImageFormat' } },
    migrate: { arguments: 'MigrationUri' },
    'migrate-incoming': { arguments: 'MigrationUri' },
    migrate_cancel: {},
    /** Ours: the operator says that the destination does not run the guest, so it runs on here */
    '__caisson_migrate-reclaim': {},
    'migrate-set-parameters': { arguments: 'MigrationParameters' },
    'query-migrate-parameters': { returns: 'MigrationParameters' },
    'query-migrate': { returns: 'MigrationInfo' },
  },
  events: {
    STOP: {},
    RESUME: {},
    POWERDOWN: {},
    SHUTDOWN: { guest: 'bool', reason: 'ShutdownCause' },
    RESET: { guest: 'bool', reason: 'ShutdownCause' },
    MIGRATION: { status: 'MigrationStatus' },
    MIGRATION_PASS: { pass: 'int' },
  },
} as const satisfies QmpSchema;
