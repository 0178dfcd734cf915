import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import test, { type ExecutionContext } from 'ava';
import type { BrowserContext, Page } from 'playwright-core';
import { ConsoleRig } from '../../test/fixtures/console_rig.ts';
import { TestCard } from '../../test/fixtures/display.ts';
import { findChromium, startChromium } from './chromium.ts';

// Our page on the unmodified noVNC client, in a real browser.

let browser: { context: BrowserContext; close: () => Promise<void> } | undefined;

test.before(async (t) => {
  const executable = findChromium();
  if (executable === undefined) t.log('SKIPPED: no Chromium (Debian package chromium); the console page is not tested');
  else browser = await startChromium(executable);
});
test.after.always(() => browser?.close());

/** What the page offers to scripts. */
interface PageGlobals {
  readonly caissonConsole:
    | { readonly state: string; readonly client: { getImageData(): { data: Uint8Array<ArrayBuffer> } } | undefined }
    | undefined;
}

/** What noVNC keeps off-screen, hashed: exact pixels or nothing. */
const hashOfPage = (page: Page) =>
  page.evaluate(async () => {
    const image = (globalThis as unknown as PageGlobals).caissonConsole?.client?.getImageData();
    if (image === undefined) return '';
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', image.data));
    return [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  });

const hashOfCard = (card: TestCard) => createHash('sha256').update(card.rgba()).digest('hex');

async function until(what: string, check: () => boolean | Promise<boolean>, timeoutMs = 15_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await check())) {
    if (performance.now() > end) throw new Error(`Waited ${timeoutMs} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function openConsole(context: BrowserContext, url: string): Promise<{ page: Page; complaints: string[] }> {
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on('pageerror', (error) => complaints.push(`page error: ${error.message}`));
  page.on('requestfailed', (request) => complaints.push(`request failed: ${request.url().split('?')[0]}`));
  page.on('console', (message) => {
    const text = message.text();
    if (message.type() === 'error' || message.type() === 'warning') {
      if (!text.includes('willReadFrequently')) complaints.push(`${message.type()}: ${text}`);
    }
  });
  await page.goto(url);
  await page.waitForFunction(
    () => (globalThis as unknown as PageGlobals).caissonConsole?.state === 'connected',
    undefined,
    {
      timeout: 20_000,
    },
  );
  return { page, complaints };
}

const chromiumTest = (title: string, run: (t: ExecutionContext, context: BrowserContext) => Promise<void>) =>
  test.serial(title, async (t) => {
    t.timeout(120_000);
    if (browser === undefined) {
      t.log('SKIPPED: no Chromium');
      t.pass();
      return;
    }
    await run(t, browser.context);
  });

chromiumTest(
  'T2 noVNC shows every pixel of the card, and of ten frames after it, on one zlib stream',
  async (t, context) => {
    const card = new TestCard(800, 600);
    await using rig = new ConsoleRig(card);
    const { url } = await rig.listen();
    const { page, complaints } = await openConsole(context, url);
    await until('the first frame', async () => (await hashOfPage(page)) === hashOfCard(card));
    for (let frame = 1; frame <= 10; frame++) {
      if (frame % 2 === 0) card.drawCard(frame);
      else card.draw({ x: 37 * frame, y: 21 * frame, width: 130, height: 90 }, (x, y) => (x * y * frame) & 0xff_ffff);
      await until(`frame ${frame}`, async () => (await hashOfPage(page)) === hashOfCard(card));
    }
    t.is(await hashOfPage(page), hashOfCard(card));
    t.false(page.url().includes('token'), 'the token has left the address bar');
    t.deepEqual(complaints, []);
    await page.close();
  },
);

chromiumTest(
  'T2 keys typed in the page arrive as evdev codes, and all are let go when it closes',
  async (t, context) => {
    await using rig = new ConsoleRig();
    const { url } = await rig.listen();
    const { page } = await openConsole(context, url);
    await page.locator('#screen canvas').click();
    await page.keyboard.type('aZ/');
    await page.keyboard.press('ArrowRight');
    await until('the keys', () => rig.keyboard.keys.includes('106-'));
    t.deepEqual(
      rig.keyboard.keys.filter((key) => !key.startsWith('42')),
      ['30+', '30-', '44+', '44-', '53+', '53-', '106+', '106-'],
    );
    rig.keyboard.keys.length = 0;
    await page.keyboard.down('ControlLeft');
    await page.keyboard.down('KeyB');
    await until('both down', () => rig.keyboard.keys.length === 2);
    await page.close();
    await until('both up', () => rig.keyboard.keys.length === 4);
    t.deepEqual(rig.keyboard.keys.slice(2).sort(), ['29-', '48-']);
  },
);

chromiumTest('T2 type text presses what a US keyboard needs, with Shift around it', async (t, context) => {
  await using rig = new ConsoleRig();
  const { url } = await rig.listen();
  const { page, complaints } = await openConsole(context, url);
  await page.getByRole('button', { name: 'Type text' }).click();
  await page.getByRole('textbox').fill('uname -a | W!\n');
  await page.locator('#type-send').click();
  await until('the line feed', () => rig.keyboard.keys.includes('28-'));
  t.deepEqual(
    rig.keyboard.keys.slice(-14),
    [
      ...['42+', '43+', '42-', '43-'], // |
      ...['57+', '57-'],
      ...['42+', '17+', '42-', '17-'], // W
      ...['42+', '2+', '42-', '2-', '28+', '28-'],
    ].slice(-14),
  );
  t.deepEqual(complaints, []);
  await page.close();
});

chromiumTest('T2 the pointer arrives scaled to the tablet, the wheel as detents', async (t, context) => {
  await using rig = new ConsoleRig(new TestCard(640, 480));
  const { url } = await rig.listen();
  const { page } = await openConsole(context, url);
  await until('the picture', async () => (await hashOfPage(page)) === hashOfCard(rig.card));
  const box = (await page.locator('#screen canvas').boundingBox())!;
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.up();
  await page.mouse.wheel(0, 120);
  await until('the wheel', () => rig.tablet.events.includes('wheel 1,0'));
  const press = rig.tablet.events.find((event) => event.endsWith(',1'))!;
  const [x, y] = press.split(',').map(Number);
  t.true(Math.abs(x! - 16384) < 120, press);
  t.true(Math.abs(y! - 16384) < 120, press);
  await page.close();
});

chromiumTest('D5 the page follows a guest that changes its size', async (t, context) => {
  const card = new TestCard(640, 480);
  await using rig = new ConsoleRig(card);
  const { url } = await rig.listen();
  const { page, complaints } = await openConsole(context, url);
  for (const [width, height] of [
    [1024, 768],
    [333, 111],
    [800, 600],
  ] as const) {
    card.setSize(width, height);
    await until(`${width}x${height}`, async () => (await hashOfPage(page)) === hashOfCard(card));
  }
  card.obeysSizeRequests = true;
  await page.getByRole('button', { name: 'View' }).click();
  await page.getByRole('menuitemradio', { name: 'Resize the guest' }).click();
  await until('a size request', () => card.sizeRequests.length > 0);
  await until('the new size', async () => (await hashOfPage(page)) === hashOfCard(card));
  t.true(card.sizeRequests.length < 4, 'the page does not ask for ever');
  t.deepEqual(complaints, []);
  await page.evaluate(() => localStorage.clear());
  await page.close();
});

chromiumTest('T3 the page comes back by itself, without the token in its URL', async (t, context) => {
  await using rig = new ConsoleRig();
  const { url } = await rig.listen();
  const { page } = await openConsole(context, url);
  const query = (await rig.control.call('query-vnc')) as { clients: { id: number }[] };
  t.is(query.clients.length, 1);
  await rig.control.call('disconnect', { id: query.clients[0]!.id });
  await until('the new connection', async () => {
    const now = (await rig.control.call('query-vnc')) as { clients: { id: number }[] };
    return now.clients.length === 1 && now.clients[0]!.id !== query.clients[0]!.id;
  });
  await until('the picture', async () => (await hashOfPage(page)) === hashOfCard(rig.card));
  await page.reload();
  await page.waitForFunction(() => (globalThis as unknown as PageGlobals).caissonConsole?.state === 'connected');
  t.pass();
  await page.close();
});

chromiumTest('T3 a page of another origin gets no WebSocket, cookie or not', async (t, context) => {
  await using rig = new ConsoleRig();
  const { url } = await rig.listen();
  const { page } = await openConsole(context, url);
  // Same host, another port: the same site for cookies, another origin. No CSP of ours on it
  const other = createServer((_request, response) => {
    response.setHeader('content-type', 'text/html').end('<!doctype html><title>other</title>');
  });
  await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
  const foreign = await context.newPage();
  await foreign.goto(`http://127.0.0.1:${(other.address() as AddressInfo).port}/`);
  const target = new URL(url);
  const outcome = await foreign.evaluate(
    (address) =>
      new Promise((resolve) => {
        try {
          const socket = new WebSocket(address);
          socket.onopen = () => resolve('open');
          socket.onerror = () => resolve('refused');
        } catch (error) {
          resolve(String(error));
        }
      }),
    `ws://${target.host}/websocket`,
  );
  t.is(outcome, 'refused');
  await foreign.close();
  await page.close();
  other.close();
  other.closeAllConnections();
});

chromiumTest(
  'the page works by keyboard: a way out of the guest, menus by arrow keys, Ctrl-Alt-Del',
  async (t, context) => {
    await using rig = new ConsoleRig();
    const { url } = await rig.listen();
    const { page, complaints } = await openConsole(context, url);
    await page.locator('#screen canvas').click();
    for (const key of ['Control', 'Alt', 'Shift']) await page.keyboard.down(key);
    await until(
      'focus on the toolbar',
      () => page.evaluate("document.activeElement.id === 'keys'") as Promise<boolean>,
    );
    for (const key of ['Shift', 'Alt', 'Control']) await page.keyboard.up(key);
    await until('no key is left down', () => {
      const downs = rig.keyboard.keys.filter((key) => key.endsWith('+')).length;
      return downs > 0 && downs * 2 === rig.keyboard.keys.length;
    });
    rig.keyboard.keys.length = 0;
    await page.keyboard.press('ArrowDown');
    t.is(await page.evaluate("document.activeElement.textContent.includes('Ctrl-Alt-Del')"), true);
    await page.keyboard.press('Enter');
    await until('six events', () => rig.keyboard.keys.length >= 6);
    t.deepEqual(rig.keyboard.keys.slice(0, 6), ['29+', '56+', '111+', '111-', '56-', '29-']);
    t.deepEqual(complaints, []);
    await page.close();
  },
);

chromiumTest('D7 the page saves a screenshot, which is a PNG of the guest', async (t, context) => {
  await using rig = new ConsoleRig(new TestCard(320, 200), { name: 'my vm' });
  const { url } = await rig.listen();
  const { page } = await openConsole(context, url);
  await until('the picture', async () => (await hashOfPage(page)) === hashOfCard(rig.card));
  const [download] = await Promise.all([
    page.waitForEvent('download'),
    page.getByRole('button', { name: 'Save a screenshot' }).click(),
  ]);
  t.regex(download.suggestedFilename(), /^my-vm-[\dT-]+\.png$/);
  const bytes = await readFile((await download.path())!);
  t.deepEqual([bytes.subarray(1, 4).toString(), bytes.readUInt32BE(16), bytes.readUInt32BE(20)], ['PNG', 320, 200]);
  await page.close();
});
