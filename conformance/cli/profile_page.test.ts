// The flame graph of a real run, in a real browser.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import test from 'ava';
import type { Page } from 'playwright-core';
import { findChromium, startChromium } from '../vnc/chromium.ts';

const CAISSON = fileURLToPath(new URL('../../bin/caisson', import.meta.url));

test('run -profile writes a page that draws the guest’s time, finds functions and zooms', async (t) => {
  t.timeout(120_000);
  const executable = findChromium();
  if (executable === undefined) {
    t.log('SKIPPED: no Chromium (apt: chromium)');
    t.pass();
    return;
  }
  const folder = await mkdtemp(join(tmpdir(), 'caisson-profile-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const page = join(folder, 'profile.html');
  const guest = spawn(CAISSON, [
    ...['run', '-name', 'conformance-profile', '-bios', 'none', '-kernel', 'builtin:firmware', '-nographic'],
    ...['-profile', page],
  ]);
  const exited = once(guest, 'exit');
  let output = '';
  guest.stdout.on('data', (chunk: Buffer) => {
    const before = output;
    output += chunk.toString('latin1');
    if (!before.includes('ready') && output.includes('ready')) guest.stdin.write('count 20000\r');
    if (!before.includes('online-bad=') && output.includes('online-bad=')) guest.stdin.write('poweroff\r');
  });
  t.deepEqual(await exited, [0, null]);
  t.is((await stat(page)).mode & 0o777, 0o600);

  const browser = await startChromium(executable);
  t.teardown(browser.close);
  const tab = await browser.context.newPage();
  const problems: string[] = [];
  tab.on('pageerror', (error) => problems.push(error.message));
  tab.on('console', (message) => problems.push(message.text()));
  tab.on('request', (request) => {
    if (request.url() !== pathToFileURL(page).href) problems.push(`loads ${request.url()}`);
  });
  await tab.goto(pathToFileURL(page).href);
  t.regex((await tab.locator('#facts').textContent())!, /^[\d.]+ s · 1 hart, \d+(?:\.\d)? % busy · \d+ samples$/);
  t.regex((await tab.locator('#hot li .name').first().textContent())!, /^\[0x8000[0-9a-f]{4}\]$/);
  await tab.locator('#search').fill('machine');
  await tab.waitForFunction("document.getElementById('matched').value === '100 %'");
  const box = (await tab.locator('#graph').boundingBox())!;
  await tab.mouse.click(box.x + 50, box.y + 30);
  await tab.waitForFunction("document.querySelectorAll('#path button').length === 2");
  t.is(await tab.locator('#path button').last().textContent(), 'machine');
  await tab.keyboard.press('Escape');
  await tab.waitForFunction("document.querySelectorAll('#path button').length === 1");

  // The same page with 30 functions that call each other, in windows that are too low for them
  const html = await readFile(page, 'utf8');
  const names = Array.from({ length: 30 }, (_, depth) => `f${depth}`);
  const nodes = names.flatMap((_, depth) => [depth, depth, 0, 100, depth === 29 ? 100 : 0]);
  const data = JSON.stringify({ names, nodes, facts: '' });
  await writeFile(page, html.replace(/(<script type="application\/json" id="data">).*?(<\/script>)/s, `$1${data}$2`));
  for (const [width, height] of [
    [1280, 300],
    [600, 500],
    [320, 320],
  ] as const) {
    await tab.setViewportSize({ width, height: 1000 });
    await tab.reload();
    await tab.locator('#flip').click();
    t.is(await atTheBottom(tab), 'f0');
    await tab.setViewportSize({ width, height });
    t.is(await atTheBottom(tab), 'f0', `flipped, and then ${width}x${height}`);
    await tab.reload();
    await tab.locator('#flip').click();
    t.is(await atTheBottom(tab), 'f0', `${width}x${height}, and then flipped`);
  }
  t.deepEqual(problems, []);
});

/** The function in the lowest row that is drawn, as the page names it under the pointer. */
async function atTheBottom(tab: Page): Promise<string | null> {
  // Sizes are followed, and drawn, with the next frames.
  await tab.evaluate('new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))');
  await tab.mouse.move(1, 1);
  const { width, height } = (await tab.locator('#graph').boundingBox())!;
  if (height < 22) return null;
  await tab.locator('#graph').hover({ position: { x: width / 2, y: height - 12 }, timeout: 5000 });
  return tab.locator('#tip b').textContent({ timeout: 5000 });
}
