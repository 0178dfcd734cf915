/** The driver broke the ring protocol. Only a device reset helps: the device sets DEVICE_NEEDS_RESET. */
export class VirtQueueError extends Error {
  override readonly name = 'VirtQueueError';
  readonly code = 'ERR_VIRTQUEUE';
}
