import { BytePool } from '../../protocols/bytes/mod.ts';

/** {@link BytePool} of Node's buffers. */
export class BufferPool extends BytePool<Buffer> {
  /** Keeps at most `maxIdleBytes` of unused buffers (default 64 MiB) */
  constructor(maxIdleBytes = 64 << 20) {
    super((lengthBytes) => Buffer.allocUnsafeSlow(lengthBytes), maxIdleBytes);
  }

  /** What is not a buffer of Node's is not one of ours. */
  override give(buffer: Uint8Array): void {
    if (Buffer.isBuffer(buffer)) super.give(buffer);
  }
}
