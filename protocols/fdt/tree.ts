const textEncoder = new TextEncoder();
const textDecoder = new TextDecoder();

/** A range of RAM that the guest must not use, as in the memory reservation block: unsigned 64 bits, in `bytes` */
export interface FdtReservation {
  readonly address: bigint;
  readonly size: bigint;
}

/** A whole device tree. */
export interface Fdt {
  readonly root: FdtNode;
  readonly reservations: readonly FdtReservation[];
  /** Hart id of the hart that boots */
  readonly bootCpu: number;
}

/**
 * A node of a device tree: properties in order, then children in order. Setters return the node, so that a tree
 * reads as it is nested:
 *
 * ```ts
 * const root = new FdtNode('').cells('#address-cells', 2).cells('#size-cells', 2);
 * root.child('memory@80000000').text('device_type', 'memory').cells('reg', 0, 0x8000_0000, 0, 0x1000_0000);
 * ```
 */
export class FdtNode {
  /** With its unit address; empty for the root */
  readonly name: string;
  readonly properties = new Map<string, Uint8Array>();
  readonly children: FdtNode[] = [];

  constructor(name: string) {
    this.name = name;
  }

  /** Adds a child at the end, or gives the one that has this name already. */
  child(name: string): FdtNode {
    const present = this.children.find((node) => node.name === name);
    if (present !== undefined) return present;
    const node = new FdtNode(name);
    this.children.push(node);
    return node;
  }

  /** The node at a path such as `/soc/serial@10000000`, relative to this one, by full names */
  find(path: string): FdtNode | undefined {
    let node: FdtNode | undefined = this;
    for (const name of path.split('/')) {
      if (name !== '') node = node?.children.find((child) => child.name === name);
    }
    return node;
  }

  /** An empty property: its presence is its value */
  flag(name: string): this {
    return this.bytes(name, new Uint8Array(0));
  }

  bytes(name: string, value: Uint8Array): this {
    this.properties.set(name, value);
    return this;
  }

  /** 32-bit cells, unsigned, big-endian */
  cells(name: string, ...values: number[]): this {
    const bytes = new Uint8Array(values.length * 4);
    const view = new DataView(bytes.buffer);
    for (const [index, value] of values.entries()) {
      if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) {
        throw new RangeError(`Cannot put ${value} into a cell of ${name}: range is 0..2^32-1`);
      }
      view.setUint32(index * 4, value);
    }
    return this.bytes(name, bytes);
  }

  /** Values of two cells each, unsigned, as `reg` has them where addresses and sizes are 64 bits */
  cells64(name: string, ...values: number[]): this {
    return this.cells(name, ...values.flatMap(split64));
  }

  /** One string, or a list of them, each ended by NUL */
  text(name: string, ...values: string[]): this {
    return this.bytes(name, textEncoder.encode(values.map((value) => `${value}\0`).join('')));
  }

  /** The property as 32-bit cells, or undefined where it is absent or no whole number of cells */
  getCells(name: string): number[] | undefined {
    const bytes = this.properties.get(name);
    if (bytes === undefined || bytes.length % 4 !== 0) return undefined;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return Array.from({ length: bytes.length / 4 }, (_, index) => view.getUint32(index * 4));
  }

  /** The property as its strings, or undefined where it is absent or not ended by NUL */
  getText(name: string): string[] | undefined {
    const bytes = this.properties.get(name);
    if (bytes === undefined || bytes.length === 0 || bytes.at(-1) !== 0) return undefined;
    return textDecoder.decode(bytes.subarray(0, -1)).split('\0');
  }
}

/** High and low cell of a 64-bit value that is a safe integer */
export function split64(value: number): [number, number] {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`Cannot split ${value} into cells`);
  return [Math.floor(value / 2 ** 32), value % 2 ** 32];
}
