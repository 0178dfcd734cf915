import { Cursor, Writer } from '../bytes/mod.ts';

// Traditional memory balloon device (virtio 1.2 §5.5).

export const VIRTIO_BALLOON_F_MUST_TELL_HOST = 0;
export const VIRTIO_BALLOON_F_STATS_VQ = 1;
export const VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 2;

/** Unit of the balloon whatever the guest's page size, in `bytes` (§5.5.6) */
export const VIRTIO_BALLOON_PAGE_BYTES = 4096;
export const VIRTIO_BALLOON_CONFIG_BYTES = 8;
/** Offset of `actual` in the configuration: the only field that the driver writes */
export const VIRTIO_BALLOON_ACTUAL = 4;
export const VIRTIO_BALLOON_STAT_BYTES = 10;
/** Tags are 0..15 in 1.2; a driver may send a few more than we know */
export const VIRTIO_BALLOON_MAX_STATS = 64;

export function encodeVirtioBalloonConfig(pages: number, actual: number): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTIO_BALLOON_CONFIG_BYTES).u32le(pages).u32le(actual).finish();
}

/** A list of page frame numbers, as many as there are whole words. */
export function decodeVirtioBalloonPages(bytes: Uint8Array, maxPages: number): number[] {
  const cursor = new Cursor(bytes, 'virtio_balloon pages');
  const count = Math.ceil(bytes.length / 4);
  if (count > maxPages) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept ${count} pages: limit is ${maxPages}`);
  }
  const pages: number[] = [];
  for (let index = 0; index < count; index++) pages.push(cursor.u32le('pfn'));
  return pages;
}

/** `struct virtio_balloon_stat` */
export interface VirtioBalloonStat {
  readonly tag: number;
  readonly value: bigint;
}

export function decodeVirtioBalloonStats(bytes: Uint8Array): VirtioBalloonStat[] {
  const cursor = new Cursor(bytes, 'virtio_balloon_stat');
  const count = Math.ceil(bytes.length / VIRTIO_BALLOON_STAT_BYTES);
  if (count > VIRTIO_BALLOON_MAX_STATS) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept ${count} statistics: limit is ${VIRTIO_BALLOON_MAX_STATS}`);
  }
  const stats: VirtioBalloonStat[] = [];
  for (let index = 0; index < count; index++) stats.push({ tag: cursor.u16le('tag'), value: cursor.u64le('val') });
  return stats;
}

export function encodeVirtioBalloonStats(stats: readonly VirtioBalloonStat[]): Uint8Array<ArrayBuffer> {
  const writer = new Writer();
  for (const { tag, value } of stats) writer.u16le(tag).u64le(value);
  return writer.finish();
}
