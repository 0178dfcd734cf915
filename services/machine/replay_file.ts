import { readSync, writeSync } from 'node:fs';
import type { ReplayFile } from '../../emulator/icount/replay_log.ts';

/** Read at once, in `bytes` */
const CHUNK_BYTES = 1 << 20;

/** A recording in a file that the supervisor opened. */
export function openReplay(mode: 'record' | 'replay', fd: number): ReplayFile {
  if (mode === 'record') {
    return {
      mode,
      write: (bytes) => {
        for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at);
      },
    };
  }
  return {
    mode,
    read: () => {
      const chunk = new Uint8Array(CHUNK_BYTES);
      const length = readSync(fd, chunk, 0, CHUNK_BYTES, null);
      return length === 0 ? undefined : chunk.subarray(0, length);
    },
  };
}
