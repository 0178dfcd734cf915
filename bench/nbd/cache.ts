import { execFileSync } from 'node:child_process';

/** Takes a file out of the page cache. dd says so to the kernel when it is told to write nothing without the cache. */
export function dropCache(path: string): void {
  const words = [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none'];
  execFileSync('dd', ['if=/dev/null', ...words]);
}

/** Puts a file into the page cache. Some kernels take files out of it that nobody maps, within minutes, with memory free. */
export function fillCache(path: string): void {
  execFileSync('dd', [`if=${path}`, 'of=/dev/null', 'bs=1M', 'status=none']);
}
