export { Plic } from './device.ts';
