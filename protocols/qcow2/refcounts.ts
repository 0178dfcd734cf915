/** Refcounts in one refcount block of `clusterBytes`. */
export function refcountsPerBlock(clusterBytes: number, order: number): number {
  return (clusterBytes * 8) / 2 ** order;
}

/** The refcount at `index` of a block. Widths below 8 bits count from the least significant bit of a byte. */
export function readRefcount(block: DataView, index: number, order: number): number {
  switch (order) {
    case 3:
      return block.getUint8(index);
    case 4:
      return block.getUint16(index * 2);
    case 5:
      return block.getUint32(index * 4);
    case 6:
      return block.getUint32(index * 8) * 2 ** 32 + block.getUint32(index * 8 + 4);
    default: {
      const perByte = 8 >> order;
      const shift = (index % perByte) << order;
      return (block.getUint8(Math.floor(index / perByte)) >> shift) & ((1 << (1 << order)) - 1);
    }
  }
}

/** @throws RangeError where the width does not hold `value` */
export function writeRefcount(block: DataView, index: number, order: number, value: number): void {
  if (value < 0 || value > maxRefcount(order)) {
    throw new RangeError(`Cannot write refcount ${value}: ${2 ** order} bits hold up to ${maxRefcount(order)}`);
  }
  switch (order) {
    case 3:
      block.setUint8(index, value);
      return;
    case 4:
      block.setUint16(index * 2, value);
      return;
    case 5:
      block.setUint32(index * 4, value);
      return;
    case 6:
      block.setUint32(index * 8, Math.floor(value / 2 ** 32));
      block.setUint32(index * 8 + 4, value % 2 ** 32);
      return;
    default: {
      const perByte = 8 >> order;
      const at = Math.floor(index / perByte);
      const shift = (index % perByte) << order;
      const mask = ((1 << (1 << order)) - 1) << shift;
      block.setUint8(at, (block.getUint8(at) & ~mask) | (value << shift));
    }
  }
}

/** What the width can hold, and a double can count */
export function maxRefcount(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}
