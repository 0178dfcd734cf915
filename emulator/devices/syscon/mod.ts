export { type FinisherRequest, Syscon } from './device.ts';
