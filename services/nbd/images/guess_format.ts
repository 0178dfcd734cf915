import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { looksLikeVhdFooter } from '../../../protocols/vhd/mod.ts';
import { looksLikeVhdx } from '../../../protocols/vhdx/mod.ts';
import { looksLikeVmdkSparse } from '../../../protocols/vmdk/mod.ts';
import type { ImageFormat } from './image_format.ts';

const SECTOR_BYTES = 512;

/** First bytes of formats that other programs know and this one does not read: nobody's guest may write them either */
const FOREIGN_STARTS: readonly (readonly [text: string, at: number])[] = [
  ['QED\0', 0],
  ['\x7f\x10\xda\xbe', 0x40], // VDI
  ['WithoutFreeSpace', 0],
  ['WithouFreSpacExt', 0],
  ['Bochs Virtual HD Image', 0],
  ['#!/bin/sh\n#V2.0 Format\n', 0], // cloop
];

/**
 * What a file looks like by its first bytes, and with `footer` by its last ones; undefined where it looks like nothing,
 * as raw disks do, or cannot be opened. Whoever writes a disk chooses what this answers: it serves advice, and those who
 * ask for guessing by name. These get QEMU's answer: a fixed VHD, which has its footer alone, is raw.
 */
export function guessFormat(path: string, { footer = false } = {}): ImageFormat | undefined {
  let fd: number;
  try {
    fd = openToLook(path);
  } catch {
    return undefined; // whoever opens it really will say why not
  }
  return formatOfFile(fd, footer);
}

/** The same for those who ask for guessing: raw where it looks like nothing. @throws Error of open(2) */
export function guessedFormat(path: string): ImageFormat {
  return formatOfFile(openToLook(path), false) ?? 'raw';
}

/** O_NONBLOCK: a FIFO must not be waited for. */
function openToLook(path: string): number {
  return openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
}

/** Closes the file. */
function formatOfFile(fd: number, footer: boolean): ImageFormat | undefined {
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) return undefined;
    const start = Buffer.alloc(SECTOR_BYTES);
    const end = Buffer.alloc(SECTOR_BYTES);
    const first = start.subarray(0, readSync(fd, start, 0, SECTOR_BYTES, 0));
    if (stats.size >= SECTOR_BYTES) readSync(fd, end, 0, SECTOR_BYTES, stats.size - SECTOR_BYTES);
    return formatOfStart(first) ?? (footer && looksLikeVhdFooter(end) ? 'vpc' : undefined);
  } finally {
    closeSync(fd);
  }
}

/** Whether a disk that begins so would be taken for something else than raw by who guesses. */
export function looksLikeSomeFormat(start: Uint8Array): boolean {
  const text = Buffer.from(start.buffer, start.byteOffset, start.byteLength).toString('latin1');
  return formatOfStart(start) !== undefined || FOREIGN_STARTS.some(([magic, at]) => text.startsWith(magic, at));
}

function formatOfStart(start: Uint8Array): ImageFormat | undefined {
  const text = Buffer.from(start.buffer, start.byteOffset, Math.min(start.byteLength, 32)).toString('latin1');
  if (text.startsWith('QFI\xfb')) return 'qcow2';
  if (text.startsWith('LUKS\xba\xbe')) return 'luks';
  if (looksLikeVhdx(start)) return 'vhdx';
  if (looksLikeVmdkSparse(start) || text.startsWith('# Disk DescriptorFile')) return 'vmdk';
  return looksLikeVhdFooter(start) ? 'vpc' : undefined;
}
