import type { StateValue } from '../../state/state.ts';
import { StateError } from '../../state/state.ts';
import type { AccessSize, Device, MmioDevice } from '../device.ts';
import { FINISHER_FAIL, FINISHER_PASS, FINISHER_RESET, TEST_FINISHER } from './registers.ts';

/** What the guest asked for: the end, with its exit code (0 passed), or a reset */
export type FinisherRequest = { readonly kind: 'exit'; readonly code: number } | { readonly kind: 'reset' };

/**
 * The device that ends the machine. Bare-metal programs report their result through it, kernels power off and
 * reboot through it. No state: every thread has its own object, and the request is called on the hart's thread.
 */
export class Syscon implements MmioDevice, Device {
  /** It needs no shared words */
  static readonly WORDS = 0;

  readonly name = 'riscv.sifive.test';
  readonly stateName = 'syscon0';
  readonly stateVersion = 1;
  readonly #request: (request: FinisherRequest) => void;

  constructor(request: (request: FinisherRequest) => void) {
    this.#request = request;
  }

  read(): number {
    return 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    // As in QEMU: 16-bit stores work too and carry no code
    if (offset !== TEST_FINISHER || size === 1) return;
    switch (value & 0xffff) {
      case FINISHER_PASS:
        this.#request({ kind: 'exit', code: 0 });
        break;
      case FINISHER_FAIL:
        this.#request({ kind: 'exit', code: value >>> 16 });
        break;
      case FINISHER_RESET:
        this.#request({ kind: 'reset' });
        break;
      // Other values mean nothing
    }
  }

  reset(): void {}

  saveState(): StateValue {
    return null;
  }

  prepareState(value: unknown, version: number): () => void {
    if (version !== 1) throw new StateError(this.stateName, `version ${version}, expected 1`);
    if (value !== null) throw new StateError(this.stateName, 'expected nothing');
    return () => {};
  }
}
