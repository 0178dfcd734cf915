import { constants, inflateRaw, zstdDecompress } from 'node:zlib';
import { type CompressionType, zstdFrameBytes } from '../../../../protocols/qcow2/mod.ts';
import { ImageError } from '../disk_image.ts';

/** A window larger than the largest cluster is of no use, and memory for whoever asks */
const MAX_WINDOW_LOG = 22;
const MAX_FRAMES = 64;

/** One compressed cluster; what comes out is exactly `clusterBytes`, or ImageError. */
export async function decompressCluster(
  type: CompressionType,
  data: Uint8Array,
  clusterBytes: number,
): Promise<Uint8Array> {
  let out: Uint8Array;
  try {
    out = type === 'zlib' ? await inflate(data, clusterBytes) : await decompressFrames(data, clusterBytes);
  } catch (cause) {
    throw new ImageError('EIO', `Cannot read a compressed cluster: not ${type} data of a cluster`, { cause });
  }
  if (out.length !== clusterBytes) {
    throw new ImageError('EIO', `Cannot read a compressed cluster: ${out.length} bytes, expected ${clusterBytes}`);
  }
  return out;
}

function inflate(data: Uint8Array, maxOutputLength: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    inflateRaw(data, { maxOutputLength }, (error, out) => (error === null ? resolve(out) : reject(error)));
  });
}

/** A cluster may be several frames: until there is enough, and not one more, which would be the next cluster's. */
async function decompressFrames(data: Uint8Array, clusterBytes: number): Promise<Uint8Array> {
  const params = { [constants.ZSTD_d_windowLogMax]: MAX_WINDOW_LOG };
  const cluster = new Uint8Array(clusterBytes);
  let done = 0;
  // An empty frame brings nothing: their number is bounded, too.
  for (let at = 0, frames = 0; done < clusterBytes && frames < MAX_FRAMES; frames++) {
    const length = zstdFrameBytes(data, at);
    if (length === undefined) break;
    const frame = data.subarray(at, at + length);
    const options = { maxOutputLength: clusterBytes - done, params };
    const out = await new Promise<Uint8Array>((resolve, reject) => {
      zstdDecompress(frame, options, (error, result) => (error === null ? resolve(result) : reject(error)));
    });
    cluster.set(out, done);
    done += out.length;
    at += length;
  }
  return cluster.subarray(0, done);
}
