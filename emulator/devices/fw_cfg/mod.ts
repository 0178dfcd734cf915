export { FwCfg, type FwCfgOptions } from './device.ts';
export { FW_CFG_KEY, FW_CFG_LIMITS } from './registers.ts';
