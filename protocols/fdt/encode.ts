import { Writer } from '../bytes/mod.ts';
import {
  FDT_BEGIN_NODE,
  FDT_END,
  FDT_END_NODE,
  FDT_HEADER_BYTES,
  FDT_LAST_COMPATIBLE_VERSION,
  FDT_MAGIC,
  FDT_PROP,
  FDT_VERSION,
} from './constants.ts';
import type { Fdt, FdtNode } from './tree.ts';

/**
 * Flattens a tree into a blob of version 17: header, reservations, structure, strings, without gaps beyond
 * alignment. The same tree gives the same bytes.
 */
export function encodeFdt(fdt: Fdt): Uint8Array<ArrayBuffer> {
  const strings = new StringBlock();
  const structure = new Writer(4096);
  writeNode(structure, strings, fdt.root);
  structure.u32(FDT_END);
  const structureBytes = structure.finish();
  const stringBytes = strings.finish();

  const reservationBytes = (fdt.reservations.length + 1) * 16;
  const structureOffset = FDT_HEADER_BYTES + reservationBytes;
  const stringsOffset = structureOffset + structureBytes.length;
  const totalBytes = align4(stringsOffset + stringBytes.length);

  const blob = new Writer(totalBytes)
    .u32(FDT_MAGIC)
    .u32(totalBytes)
    .u32(structureOffset)
    .u32(stringsOffset)
    .u32(FDT_HEADER_BYTES)
    .u32(FDT_VERSION)
    .u32(FDT_LAST_COMPATIBLE_VERSION)
    .u32(fdt.bootCpu)
    .u32(stringBytes.length)
    .u32(structureBytes.length);
  for (const { address, size } of fdt.reservations) blob.u64(address).u64(size);
  blob.u64(0n).u64(0n);
  blob.bytes(structureBytes).bytes(stringBytes);
  return blob.zeroes(totalBytes - blob.length).finish();
}

function writeNode(structure: Writer, strings: StringBlock, node: FdtNode): void {
  structure.u32(FDT_BEGIN_NODE).utf8(`${node.name}\0`);
  pad4(structure);
  for (const [name, value] of node.properties) {
    structure.u32(FDT_PROP).u32(value.length).u32(strings.offset(name)).bytes(value);
    pad4(structure);
  }
  for (const child of node.children) writeNode(structure, strings, child);
  structure.u32(FDT_END_NODE);
}

/** Property names, each once. */
class StringBlock {
  readonly #writer = new Writer(1024);
  readonly #offsets = new Map<string, number>();

  offset(name: string): number {
    const known = this.#offsets.get(name);
    if (known !== undefined) return known;
    const offset = this.#writer.length;
    this.#writer.utf8(`${name}\0`);
    this.#offsets.set(name, offset);
    return offset;
  }

  finish(): Uint8Array {
    return this.#writer.finish();
  }
}

function align4(value: number): number {
  return (value + 3) & ~3;
}

function pad4(writer: Writer): void {
  writer.zeroes(align4(writer.length) - writer.length);
}
