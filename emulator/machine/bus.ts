import type { AccessSize, MmioDevice } from '../devices/device.ts';
import type { AddressRange } from './memory_map.ts';

export interface Window {
  readonly range: AddressRange;
  readonly device: MmioDevice;
}

/**
 * Which device a physical address belongs to. Windows do not overlap; an access that is not wholly inside one,
 * or where nothing is, is refused: the hart takes an access fault.
 */
export class Bus {
  readonly #windows: readonly Window[];
  #last: Window | undefined;

  constructor(windows: readonly Window[]) {
    const sorted = [...windows].sort((a, b) => a.range.base - b.range.base);
    for (let i = 1; i < sorted.length; i++) {
      const before = sorted[i - 1]!;
      if (before.range.base + before.range.size > sorted[i]!.range.base) {
        throw new RangeError(`Cannot place ${sorted[i]!.device.name}: it overlaps ${before.device.name}`);
      }
    }
    this.#windows = sorted;
  }

  find(address: number, size: number): Window | undefined {
    const last = this.#last;
    if (last !== undefined && inside(last, address, size)) return last;
    let low = 0;
    let high = this.#windows.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const window = this.#windows[middle]!;
      if (address < window.range.base) high = middle - 1;
      else if (address >= window.range.base + window.range.size) low = middle + 1;
      else {
        if (!inside(window, address, size)) return undefined;
        this.#last = window;
        return window;
      }
    }
    return undefined;
  }

  /** Unsigned; -1 where no device is */
  read(address: number, size: AccessSize): number {
    const window = this.find(address, size);
    return window === undefined ? -1 : window.device.read(address - window.range.base, size) >>> 0;
  }

  /** False where no device is */
  write(address: number, size: AccessSize, value: number): boolean {
    const window = this.find(address, size);
    if (window === undefined) return false;
    window.device.write(address - window.range.base, size, value);
    return true;
  }
}

function inside(window: Window, address: number, size: number): boolean {
  const offset = address - window.range.base;
  return offset >= 0 && offset <= window.range.size - size;
}
