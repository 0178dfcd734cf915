import type { ExecutionContext } from 'ava';
import {
  type DiskImage,
  ExportSet,
  type NbdExport,
  type NbdListenAddress,
  NbdListener,
  type NbdListenerOptions,
} from '../../services/nbd/mod.ts';

/** An export of the image that is served, or of another one */
export type Offered = Omit<NbdExport, 'image'> & { readonly image?: DiskImage };

export interface Served {
  readonly listener: NbdListener;
  /** Of a TCP address, as text; empty for others */
  readonly port: string;
  uriOf(exportName: string): string;
  /** Once, however often it is called: the file is then as clients have flushed it, and nobody has it open */
  close(): Promise<void>;
}

/** Our server over an image, which it takes over, on a socket of its own until the test ends. */
export async function serve(
  t: ExecutionContext,
  image: DiskImage,
  offered: readonly Offered[],
  address: NbdListenAddress,
  options: NbdListenerOptions = {},
): Promise<Served> {
  const exports = new ExportSet();
  for (const it of offered) exports.add({ image, ...it });
  const listener = await NbdListener.listen(address, exports, options);
  let closed = false;
  const close = async (): Promise<void> => {
    if (closed) return;
    closed = true;
    await listener.close();
    await image.flush();
    await image.close();
  };
  t.teardown(close);
  const port = /:(\d+)\//.exec(listener.uri)?.[1] ?? '';
  return { listener, port, uriOf: (name) => listener.uriOf(name), close };
}

/** A UNIX socket at `path`, or any free port of 127.0.0.1 */
export function addressOf(transport: 'unix' | 'tcp', path: string): NbdListenAddress {
  return transport === 'unix' ? { type: 'unix', path } : { type: 'inet', port: 0 };
}
