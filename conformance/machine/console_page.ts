import type { BrowserContext, Page } from 'playwright-core';
import type { Picture } from '../guests/qemu.ts';

/** What our page offers to scripts. */
interface PageGlobals {
  readonly caissonConsole:
    | {
        readonly state: string;
        readonly client: { getImageData(): { data: Uint8ClampedArray; width: number; height: number } } | undefined;
      }
    | undefined;
}

/** The console page of a machine in a browser. */
export class ConsolePage {
  readonly page: Page;
  /** What the browser found wrong with the page */
  readonly complaints: string[] = [];

  private constructor(page: Page) {
    this.page = page;
    page.on('pageerror', (error) => this.complaints.push(`page error: ${error.message}`));
    page.on('console', (message) => {
      const text = message.text();
      if (message.type() === 'error' && !text.includes('willReadFrequently')) this.complaints.push(text);
    });
  }

  static async open(context: BrowserContext, url: string): Promise<ConsolePage> {
    const page = new ConsolePage(await context.newPage());
    await page.page.goto(url);
    const isConnected = () => (globalThis as unknown as PageGlobals).caissonConsole?.state === 'connected';
    await page.page.waitForFunction(isConnected, undefined, { timeout: 60_000 });
    return page;
  }

  /** The pixels that noVNC has, before any scaling. */
  async picture(): Promise<Picture> {
    const { width, height, text } = await this.page.evaluate(() => {
      const image = (globalThis as unknown as PageGlobals).caissonConsole?.client?.getImageData();
      if (image === undefined) return { width: 0, height: 0, text: '' };
      let bytes = '';
      for (let at = 0; at < image.data.length; at += 32_768) {
        bytes += String.fromCharCode(...image.data.subarray(at, at + 32_768));
      }
      return { width: image.width, height: image.height, text: btoa(bytes) };
    });
    const rgba = Buffer.from(text, 'base64');
    return {
      width,
      height,
      at: (x, y) => {
        const offset = (y * width + x) * 4;
        return [rgba[offset]!, rgba[offset + 1]!, rgba[offset + 2]!];
      },
    };
  }

  /**
   * Types into the screen as a person at the keyboard does. Where this machine is so busy that a key comes up late,
   * the guest repeats it, as it should: callers look at what came and may try again.
   */
  async type(text: string): Promise<void> {
    await this.page.locator('#screen canvas').click();
    for (const character of text) {
      // A person holds Shift for these; the browser driver would send the character without it.
      const shifted = /[A-Z~!@#$%^&*()_+{}|:"<>?]/.test(character);
      if (shifted) await this.page.keyboard.down('Shift');
      await this.page.keyboard.press(character === '\n' ? 'Enter' : character);
      if (shifted) await this.page.keyboard.up('Shift');
    }
  }
}

/** How many rows of text (16 pixels, the console's font) have light pixels in them. */
export function textRows(picture: Picture): number {
  let rows = 0;
  for (let top = 0; top + 16 <= picture.height; top += 16) {
    let lit = 0;
    for (let y = top; y < top + 16; y++) {
      for (let x = 0; x < picture.width; x++) if (picture.at(x, y)[1] > 100) lit++;
    }
    if (lit > 20) rows++;
  }
  return rows;
}

/** How many pixels differ; all of them where the sizes do. */
export function differingPixels(a: Picture, b: Picture): number {
  if (a.width !== b.width || a.height !== b.height) return Math.max(a.width * a.height, b.width * b.height);
  let count = 0;
  for (let y = 0; y < a.height; y++) {
    for (let x = 0; x < a.width; x++) {
      const left = a.at(x, y);
      const right = b.at(x, y);
      if (left[0] !== right[0] || left[1] !== right[1] || left[2] !== right[2]) count++;
    }
  }
  return count;
}
