import { constants, deflateRaw, zstdCompress } from 'node:zlib';
import type { CompressionType } from '../../../../protocols/qcow2/mod.ts';

/** "Compression type 0: deflate, with a window of 4 KiB": what readers of the format are ready for */
const WINDOW_BITS = 12;

/** A cluster as compressed data, or undefined where that is not smaller. */
export async function compressCluster(type: CompressionType, cluster: Uint8Array): Promise<Uint8Array | undefined> {
  const data = await (type === 'zlib' ? deflate(cluster) : zstd(cluster));
  return data.length < cluster.length ? data : undefined;
}

function deflate(cluster: Uint8Array): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    deflateRaw(cluster, { windowBits: WINDOW_BITS }, (error, out) => (error === null ? resolve(out) : reject(error)));
  });
}

function zstd(cluster: Uint8Array): Promise<Uint8Array> {
  const params = { [constants.ZSTD_c_contentSizeFlag]: 1 };
  return new Promise((resolve, reject) => {
    zstdCompress(cluster, { params }, (error, out) => (error === null ? resolve(out) : reject(error)));
  });
}
