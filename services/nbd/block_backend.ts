import { type BlockBackend, BlockError } from '../../emulator/devices/backends.ts';
import type { NbdDisk } from './nbd_disk.ts';
import { NbdError } from './nbd_error.ts';

const SECTOR_BYTES = 512;

/** A guest's disk on an NBD server: here over a socketpair, or on another host. */
export class NbdBlockBackend implements BlockBackend {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly discard?: (offset: number, lengthBytes: number) => Promise<void>;
  readonly writeZeroes?: (offset: number, lengthBytes: number, options?: { mayUnmap?: boolean }) => Promise<void>;
  readonly #client: NbdDisk;

  /** The client is used, not owned: close it when the machine has ended. */
  constructor(client: NbdDisk) {
    this.#client = client;
    this.blockBytes = Math.max(SECTOR_BYTES, client.blockSizes.minimum);
    // A guest sees whole blocks; a shorter tail of an odd-sized image stays out of its reach.
    this.sizeBytes = client.sizeBytes - (client.sizeBytes % this.blockBytes);
    this.readOnly = client.readOnly;
    if (client.canTrim) {
      this.discard = (offset, lengthBytes) => run(() => client.trim(offset, lengthBytes));
    }
    if (client.canWriteZeroes) {
      this.writeZeroes = (offset, lengthBytes, options = {}) =>
        run(() => client.writeZeroes(offset, lengthBytes, { mayUnmap: options.mayUnmap ?? false }));
    }
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return run(() => this.#client.read(offset, into));
  }

  write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    // Guest memory may change while the write is under way, and sockets do not take shared memory.
    const stable = data.buffer instanceof SharedArrayBuffer ? new Uint8Array(data) : data;
    return run(() => this.#client.write(offset, stable, { fua: options.fua ?? false }));
  }

  flush(): Promise<void> {
    return run(() => this.#client.flush());
  }
}

async function run(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof NbdError)) throw new BlockError('EIO', 'Cannot reach the disk', { cause: error });
    throw new BlockError(blockCode(error), error.message, { cause: error });
  }
}

function blockCode(error: NbdError): BlockError['code'] {
  switch (error.code) {
    case 'ENOSPC':
    case 'EPERM':
    case 'EINVAL':
    case 'ESHUTDOWN':
      return error.code;
    default:
      return 'EIO';
  }
}
