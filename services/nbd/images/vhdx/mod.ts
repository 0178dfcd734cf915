export { inspectVhdx, openVhdx, openVhdxFile, type VhdxDetails, type VhdxMap } from './open.ts';
