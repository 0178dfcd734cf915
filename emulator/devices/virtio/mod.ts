export { VirtioBlk, type VirtioBlkOptions } from './blk.ts';
export { Chain, type ChainSegment } from './chain.ts';
export { VirtioConsole } from './console.ts';
export { VirtioDevice, type VirtioDeviceOptions, type VirtioInterrupt } from './device.ts';
export { DEFAULT_MAX_CHAIN_BYTES, MAX_CHAIN_SEGMENTS, VirtQueue, type VirtQueueOptions } from './queue.ts';
export { VirtQueueError } from './queue_error.ts';
export { VirtioRng, type VirtioRngOptions } from './rng.ts';
export { emptyVirtioMmio, VIRTIO_MMIO_BYTES, VirtioMmioTransport } from './transport_mmio.ts';
export { VirtioPciTransport } from './transport_pci.ts';
