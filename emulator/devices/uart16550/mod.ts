export { UartPort } from './character_port.ts';
export { Uart16550 } from './device.ts';
export { INPUT_RING_BYTES, OUTPUT_RING_BYTES } from './state.ts';
