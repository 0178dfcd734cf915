export { type CreateVmdkOptions, createVmdk, emptyVmdk } from './create.ts';
export {
  inspectVmdk,
  openVmdk,
  openVmdkFile,
  type VmdkDetails,
  type VmdkExtentDetails,
  type VmdkMap,
  type VmdkOptions,
} from './open.ts';
export { openVmdkStream, type VmdkStream } from './stream.ts';
