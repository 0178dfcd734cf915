export { Apt, debianRepositories } from './apt.ts';
export { type CpioEntry, encodeCpio } from './cpio.ts';
export { DebianError, type DebianErrorCode } from './debian_error.ts';
export { makeExt4Disk } from './ext4.ts';
export { moduleName, readModuleInfo, resolveModules, withoutSignature } from './kernel_modules.ts';
export {
  cacheFolder,
  DEFAULT_SUITES,
  type DebianGuest,
  type DebianProgress,
  isPrepared,
  type PrepareOptions,
  prepareDebian,
} from './prepare.ts';
export { TarFile } from './tar.ts';
