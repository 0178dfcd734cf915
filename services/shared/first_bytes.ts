import type { Readable } from 'node:stream';

/**
 * True when bytes wait in a stream that nobody reads yet; all of them stay for who reads it then. False when it has
 * ended without any. For what is loaded only when somebody asks for it.
 */
export function firstBytes(stream: Readable): Promise<boolean> {
  return new Promise((resolve) => {
    const settle = (): void => {
      stream.off('readable', settle).off('close', settle);
      resolve(stream.readableLength > 0);
    };
    stream.on('readable', settle).on('close', settle);
    if (stream.destroyed) settle();
  });
}
