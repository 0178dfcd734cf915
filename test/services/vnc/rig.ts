import type { InputMessage } from '../../../protocols/roles/display.ts';
import { duplexPair } from '../../../services/shared/mod.ts';
import { Console, type ConsoleOptions, Display, type Peer } from '../../../services/vnc/mod.ts';
import { RfbTestClient } from '../../fixtures/rfb_client.ts';

/** A console without sockets: viewers over in-process streams, the machine's part played by the test. */
export class ViewerRig {
  readonly display: Display;
  readonly console: Console;
  readonly sent: InputMessage[] = [];
  readonly events: string[] = [];
  readonly errors: Error[] = [];
  /** Resolves a waiting "machine takes no input" */
  inputBlocked: Promise<void> | undefined;

  constructor(options: Partial<ConsoleOptions> = {}, width = 320, height = 200) {
    this.display = new Display('rig');
    this.console = new Console(
      this.display,
      (message) => this.sent.push(message),
      () => this.inputBlocked,
      options,
    );
    this.console.onEvent((event, viewer, error) => {
      this.events.push(`${event} ${viewer.id}`);
      if (error !== undefined) this.errors.push(error);
    });
    this.display.apply({ type: 'surface', width, height });
    this.fill(0, 0, width, height, (x, y) => (x << 16) | (y << 8) | ((x * y) & 0xff));
  }

  /** Draws in tiles of at most 64 KiB, then ends the frame. */
  fill(x: number, y: number, width: number, height: number, colour: (x: number, y: number) => number): void {
    for (let top = y; top < y + height; top += 16) {
      const rows = Math.min(16, y + height - top);
      const pixels = Buffer.alloc(width * rows * 4);
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < width; column++) {
          pixels.writeUInt32LE((colour(x + column, top + row) & 0xffffff) >>> 0, (row * width + column) * 4);
        }
      }
      this.display.apply({ type: 'tile', x, y: top, width, height: rows, pixels });
    }
    this.display.apply({ type: 'frame-end', serial: 0 });
  }

  /** An unopened client: the handshake is the test's. `highWaterMark` small makes a slow line. */
  connect(peer: Partial<Peer> = {}): RfbTestClient {
    const [near, far] = duplexPair();
    this.console.accept(far, {
      address: '127.0.0.1',
      port: 1,
      transport: 'tcp',
      viewOnly: false,
      password: undefined,
      ...peer,
    });
    return new RfbTestClient(near);
  }

  /** Shows the same as the display? */
  matches(client: RfbTestClient): boolean {
    const { width, height, pixels } = this.display;
    if (client.width !== width || client.height !== height) return false;
    return client.pixels.every((colour, i) => colour === (pixels[i]! & 0xffffff));
  }

  inputs(): string[] {
    return this.sent.map((message) => {
      if (message.type === 'key') return `${message.code}${message.down ? '+' : '-'}`;
      if (message.type === 'pointer') return `p${message.x},${message.y},${message.buttons}`;
      if (message.type === 'wheel') return `w${message.vertical},${message.horizontal}`;
      if (message.type === 'resize') return `r${message.width}x${message.height}`;
      return message.type;
    });
  }
}

export async function until(what: string, check: () => boolean, timeoutMs = 30_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!check()) {
    if (performance.now() > end) throw new Error(`Waited ${timeoutMs} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));
