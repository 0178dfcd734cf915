import { Cursor, WireError, type WireErrorCode } from '../bytes/mod.ts';
import {
  FDT_BEGIN_NODE,
  FDT_END,
  FDT_END_NODE,
  FDT_HEADER_BYTES,
  FDT_LIMITS,
  FDT_MAGIC,
  FDT_NOP,
  FDT_PROP,
} from './constants.ts';
import { type Fdt, FdtNode, type FdtReservation } from './tree.ts';

const MESSAGE = 'device tree';

interface Block {
  readonly what: string;
  readonly offset: number;
  readonly bytes: number;
}

/**
 * Reads a blob that somebody gave us. Blocks must lie inside the blob and apart from each other, names must be
 * ended where they must, nodes must nest; everything is counted against {@link FDT_LIMITS}. Bytes after the
 * header's total size are not looked at; values are copies.
 *
 * @throws WireError
 */
export function decodeFdt(blob: Uint8Array): Fdt {
  if (blob.length > FDT_LIMITS.blobBytes) {
    throw refusal('ERR_WIRE_LIMIT', `${blob.length} bytes, limit is ${FDT_LIMITS.blobBytes}`, 0);
  }
  const header = new Cursor(blob, `${MESSAGE} header`);
  header.expectU32(FDT_MAGIC, 'magic');
  const totalBytes = header.u32('totalsize');
  const structureOffset = header.u32('off_dt_struct');
  const stringsOffset = header.u32('off_dt_strings');
  const reservationsOffset = header.u32('off_mem_rsvmap');
  const version = header.u32('version');
  const lastCompatible = header.u32('last_comp_version');
  const bootCpu = header.u32('boot_cpuid_phys');
  const stringsBytes = header.u32('size_dt_strings');
  const structureBytes = header.u32('size_dt_struct');

  // Version 17 brought the structure's size; nothing older is made any more
  if (version < 17 || lastCompatible > 17 || lastCompatible > version) {
    throw refusal('ERR_WIRE_VALUE', `version ${version} (compatible to ${lastCompatible}), expected 17`, 20);
  }
  if (totalBytes > blob.length) {
    throw refusal('ERR_WIRE_TRUNCATED', `header says ${totalBytes} bytes, file has ${blob.length}`, 4);
  }
  const whole = blob.subarray(0, totalBytes);
  if (reservationsOffset % 8 !== 0 || structureOffset % 4 !== 0 || structureBytes % 4 !== 0) {
    throw refusal('ERR_WIRE_VALUE', 'a block is not aligned', 8);
  }
  const reservations = decodeReservations(slice(whole, reservationsOffset, totalBytes - reservationsOffset));
  checkBlocks(totalBytes, [
    { what: 'header', offset: 0, bytes: FDT_HEADER_BYTES },
    { what: 'reservations', offset: reservationsOffset, bytes: (reservations.length + 1) * 16 },
    { what: 'structure', offset: structureOffset, bytes: structureBytes },
    { what: 'strings', offset: stringsOffset, bytes: stringsBytes },
  ]);
  const strings = slice(whole, stringsOffset, stringsBytes);
  const root = decodeStructure(slice(whole, structureOffset, structureBytes), strings);
  return { root, reservations, bootCpu };
}

/** @throws WireError where `bytes` of a block are not there; a bare subarray would clamp */
function slice(blob: Uint8Array, offset: number, bytes: number): Uint8Array {
  const cursor = new Cursor(blob, MESSAGE);
  cursor.skip(offset, 'block');
  return cursor.bytes(bytes, 'block');
}

function checkBlocks(totalBytes: number, blocks: Block[]): void {
  blocks.sort((a, b) => a.offset - b.offset);
  for (const [index, block] of blocks.entries()) {
    if (block.bytes > totalBytes - block.offset) {
      throw refusal('ERR_WIRE_TRUNCATED', `${block.what} block ends after the blob`, block.offset);
    }
    const before = blocks[index - 1];
    if (before !== undefined && before.offset + before.bytes > block.offset) {
      throw refusal('ERR_WIRE_VALUE', `${before.what} and ${block.what} blocks overlap`, block.offset);
    }
  }
}

function decodeReservations(block: Uint8Array): FdtReservation[] {
  const cursor = new Cursor(block, `${MESSAGE} reservations`);
  const reservations: FdtReservation[] = [];
  for (;;) {
    const address = cursor.u64('address');
    const size = cursor.u64('size');
    if (address === 0n && size === 0n) return reservations;
    if (reservations.length >= FDT_LIMITS.reservations) {
      throw refusal('ERR_WIRE_LIMIT', `more than ${FDT_LIMITS.reservations} reservations`, cursor.offset);
    }
    reservations.push({ address, size });
  }
}

function decodeStructure(block: Uint8Array, strings: Uint8Array): FdtNode {
  const cursor = new Cursor(block, `${MESSAGE} structure`);
  const names = new Map<number, string>();
  // A stack instead of recursion: depth is the file's choice up to the limit, never the engine's
  const open: FdtNode[] = [];
  let root: FdtNode | undefined;
  let nodes = 0;
  let properties = 0;
  /** Names of the children of each open node, to find doubles without walking the list */
  const siblings: Set<string>[] = [];
  for (;;) {
    const token = cursor.u32('token');
    const node = open.at(-1);
    switch (token) {
      case FDT_NOP:
        break;
      case FDT_BEGIN_NODE: {
        if (node === undefined && root !== undefined) throw cursor.error('ERR_WIRE_VALUE', refused('a second root'));
        if (open.length >= FDT_LIMITS.depth) {
          throw cursor.error('ERR_WIRE_LIMIT', refused(`nodes nest deeper than ${FDT_LIMITS.depth}`));
        }
        if (++nodes > FDT_LIMITS.nodes) {
          throw cursor.error('ERR_WIRE_LIMIT', refused(`more than ${FDT_LIMITS.nodes} nodes`));
        }
        const child = new FdtNode(nodeName(cursor, node === undefined));
        if (node === undefined) {
          root = child;
        } else {
          const taken = siblings.at(-1)!;
          if (taken.has(child.name)) throw cursor.error('ERR_WIRE_VALUE', refused(`two nodes are ${child.name}`));
          taken.add(child.name);
          node.children.push(child);
        }
        open.push(child);
        siblings.push(new Set());
        break;
      }
      case FDT_END_NODE:
        if (node === undefined) throw cursor.error('ERR_WIRE_VALUE', refused('a node ends that has not begun'));
        open.pop();
        siblings.pop();
        break;
      case FDT_PROP: {
        if (node === undefined) throw cursor.error('ERR_WIRE_VALUE', refused('a property outside of nodes'));
        if (++properties > FDT_LIMITS.properties) {
          throw cursor.error('ERR_WIRE_LIMIT', refused(`more than ${FDT_LIMITS.properties} properties`));
        }
        if (node.children.length > 0) {
          throw cursor.error('ERR_WIRE_VALUE', refused('a property after child nodes'));
        }
        const length = cursor.u32('property length');
        const nameOffset = cursor.u32('property name');
        const value = cursor.bytes(length, 'property value');
        skipPadding(cursor);
        const name = names.get(nameOffset) ?? propertyName(strings, nameOffset);
        names.set(nameOffset, name);
        if (node.properties.has(name)) throw cursor.error('ERR_WIRE_VALUE', refused(`two properties are ${name}`));
        node.properties.set(name, value.slice());
        break;
      }
      case FDT_END:
        if (root === undefined) throw cursor.error('ERR_WIRE_VALUE', refused('it has no root node'));
        if (open.length !== 0) throw cursor.error('ERR_WIRE_TRUNCATED', refused(`${open.length} nodes do not end`));
        cursor.end();
        return root;
      default:
        throw cursor.error('ERR_WIRE_VALUE', refused(`token ${token} does not exist`));
    }
  }
}

/** Characters of the specification's 2.2.1, and those that other tools let pass */
const NODE_NAME = /^[\w,.+\-#?]+(@[\w,.+\-:]+)?$/;
const PROPERTY_NAME = /^[\w,.+\-#?]+$/;

function nodeName(cursor: Cursor, isRoot: boolean): string {
  let name = '';
  for (;;) {
    const byte = cursor.u8('node name');
    if (byte === 0) break;
    if (name.length >= FDT_LIMITS.nodeNameBytes) {
      throw cursor.error('ERR_WIRE_LIMIT', refused(`a node name is longer than ${FDT_LIMITS.nodeNameBytes} bytes`));
    }
    name += String.fromCharCode(byte);
  }
  skipPadding(cursor);
  if (isRoot ? name !== '' : !NODE_NAME.test(name)) {
    throw cursor.error('ERR_WIRE_TEXT', refused(`node name ${JSON.stringify(name)} is not one`));
  }
  return name;
}

function propertyName(strings: Uint8Array, offset: number): string {
  const cursor = new Cursor(strings, `${MESSAGE} strings`);
  cursor.skip(offset, 'property name');
  let name = '';
  for (;;) {
    const byte = cursor.u8('property name');
    if (byte === 0) break;
    if (name.length >= FDT_LIMITS.propertyNameBytes) {
      throw cursor.error('ERR_WIRE_LIMIT', refused(`a property name is over ${FDT_LIMITS.propertyNameBytes} bytes`));
    }
    name += String.fromCharCode(byte);
  }
  if (!PROPERTY_NAME.test(name)) {
    throw cursor.error('ERR_WIRE_TEXT', refused(`property name ${JSON.stringify(name)} is not one`));
  }
  return name;
}

function skipPadding(cursor: Cursor): void {
  cursor.skip((4 - (cursor.offset % 4)) % 4, 'padding');
}

function refused(found: string): string {
  return `Cannot accept ${MESSAGE}: ${found}`;
}

function refusal(code: WireErrorCode, found: string, offset: number): WireError {
  return new WireError(code, refused(found), { message: MESSAGE, offset });
}
