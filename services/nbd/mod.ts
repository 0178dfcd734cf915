export { NbdBlockBackend } from './block_backend.ts';
export { NbdClient, type NbdClientOptions, NbdError } from './client.ts';
export { describeExport, type ExportDirectory, ExportSet, type NbdExport } from './export_set.ts';
export * from './images/mod.ts';
export { type NbdListenAddress, NbdListener, type NbdListenerOptions } from './listener.ts';
export { type DiskRoleImage, type DiskRoleOptions, diskRole } from './role.ts';
export { type NbdSessionSummary, type ServeNbdOptions, serveNbd } from './server.ts';
export { DEFAULT_NBD_LIMITS, type NbdServerLimits } from './server_limits.ts';
export type { TransmissionCounters } from './transmission.ts';
