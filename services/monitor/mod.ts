export { type MonitorRoleOptions, monitorRole } from './role.ts';
