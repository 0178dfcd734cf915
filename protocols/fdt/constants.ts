// Flattened device tree, version 17 (Devicetree Specification v0.4, chapter 5).

export const FDT_MAGIC = 0xd00d_feed;
export const FDT_VERSION = 17;
/** Readers of this version and later understand what we write */
export const FDT_LAST_COMPATIBLE_VERSION = 16;
/** In `bytes` */
export const FDT_HEADER_BYTES = 40;

export const FDT_BEGIN_NODE = 1;
export const FDT_END_NODE = 2;
export const FDT_PROP = 3;
export const FDT_NOP = 4;
export const FDT_END = 9;

/** Limits of a tree that comes from outside. A Linux board file has under 3,000 nodes and 100 kB. */
export const FDT_LIMITS = Object.freeze({
  /** Of the whole blob, in `bytes` */
  blobBytes: 2 * 1024 * 1024,
  /** Of nodes inside each other, the root is 1 */
  depth: 32,
  nodes: 16_384,
  /** In all nodes together */
  properties: 131_072,
  reservations: 256,
  /** Of a node's name with its unit address, in `bytes` (the specification allows 31 plus the address) */
  nodeNameBytes: 255,
  propertyNameBytes: 255,
});
