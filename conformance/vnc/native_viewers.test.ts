import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync } from 'node:fs';
import { access, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import type { Readable } from 'node:stream';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { vncResponse } from '../../services/vnc/vnc_auth.ts';
import { ConsoleRig } from '../../test/fixtures/console_rig.ts';
import { cardColour, TestCard } from '../../test/fixtures/display.ts';

// Other people's RFB clients against the console role over TCP.

const run = promisify(execFile);

function findProgram(name: string): string | undefined {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    try {
      accessSync(join(folder, name));
      return join(folder, name);
    } catch {
      // the next folder may have it
    }
  }
  return undefined;
}

/** True when all are there; otherwise says what is missing and why nothing is proved. */
function needs(t: ExecutionContext, ...programs: [string, string][]): boolean {
  const missing = programs.filter(([program]) => findProgram(program) === undefined);
  for (const [program, debianPackage] of missing) t.log(`SKIPPED: no ${program} (Debian package ${debianPackage})`);
  if (missing.length > 0) t.pass();
  return missing.length === 0;
}

async function inFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-viewer-'));
  try {
    await work(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Size and colours 0x00RRGGBB of a binary PPM. */
function readPpm(bytes: Buffer): { width: number; height: number; colour: (x: number, y: number) => number } {
  const head = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 64).toString('latin1'));
  if (head === null) throw new Error('Not a PPM');
  const [width, height] = [Number(head[1]), Number(head[2])];
  return { width, height, colour: (x, y) => bytes.readUIntBE(head[0].length + (y * width + x) * 3, 3) };
}

const toPpm = async (file: string, folder: string) => {
  const ppm = join(folder, 'out.ppm');
  await run('convert', [file, '-depth', '8', ppm]);
  return readPpm(await readFile(ppm));
};

for (const [width, height] of [
  [640, 480],
  [333, 77],
  [1920, 1080],
] as const) {
  test.serial(`T1 gvnccapture (gtk-vnc) takes an exact picture of ${width}x${height}`, async (t) => {
    if (!needs(t, ['gvnccapture', 'gvncviewer'], ['convert', 'imagemagick'])) return;
    await using rig = new ConsoleRig(new TestCard(width, height));
    const { port } = await rig.listen({ transport: 'rfb' });
    await inFolder(async (folder) => {
      const file = join(folder, 'out.png');
      await run('gvnccapture', [`127.0.0.1:${port - 5900}`, file], { timeout: 30_000 });
      const picture = await toPpm(file, folder);
      t.deepEqual([picture.width, picture.height], [width, height]);
      let wrong = 0;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) if (picture.colour(x, y) !== cardColour(x, y, width, height)) wrong++;
      }
      t.is(wrong, 0, 'pixels that differ');
    });
  });
}

test.serial('S2 vncsnapshot with the right password is let in, with a wrong one not', async (t) => {
  if (!needs(t, ['vncsnapshot', 'vncsnapshot'])) return;
  await using rig = new ConsoleRig(new TestCard(64, 64));
  const { port } = await rig.listen({ transport: 'rfb', password: 'geheim' });
  await inFolder(async (folder) => {
    const attempt = async (password: string) => {
      const secret = join(folder, `${password}.passwd`);
      const picture = join(folder, `${password}.jpg`);
      await writeFile(secret, passwordFile(password));
      await run('vncsnapshot', ['-passwd', secret, `127.0.0.1::${port}`, picture], { timeout: 20_000 }).catch(() => {});
      return access(picture).then(
        () => true,
        () => false,
      );
    };
    t.true(await attempt('geheim'));
    t.false(await attempt('falsch'));
  });
});

/** How password files keep a password: DES with a key that every viewer has built in. */
function passwordFile(password: string): Uint8Array {
  const block = Buffer.alloc(8);
  block.write(password, 'latin1');
  return vncResponse(String.fromCharCode(23, 82, 107, 6, 35, 78, 88, 7), block);
}

test.serial('T5 vncsnapshot, which speaks RFB 3.3, sees the picture', async (t) => {
  if (!needs(t, ['vncsnapshot', 'vncsnapshot'], ['convert', 'imagemagick'])) return;
  const [width, height] = [640, 480];
  await using rig = new ConsoleRig(new TestCard(width, height));
  const { port } = await rig.listen({ transport: 'rfb' });
  await inFolder(async (folder) => {
    const file = join(folder, 'out.jpg');
    const { stderr } = await run('vncsnapshot', ['-quality', '100', `127.0.0.1::${port}`, file], { timeout: 30_000 });
    t.regex(stderr, /protocol version 3\.3/);
    const picture = await toPpm(file, folder);
    t.deepEqual([picture.width, picture.height], [width, height]);
    // JPEG at quality 100: near enough in the middle of each square of the card
    for (let y = 16; y < height; y += 32) {
      for (let x = 16; x < width; x += 32) {
        const [seen, shown] = [picture.colour(x, y), cardColour(x, y, width, height)];
        for (const shift of [16, 8, 0]) {
          t.true(Math.abs(((seen >> shift) & 0xff) - ((shown >> shift) & 0xff)) < 12, `${x},${y}`);
        }
      }
    }
  });
});

/** An X server on a display of its own choice, and what ends it. */
async function startXvfb(): Promise<{ display: string; child: ChildProcess }> {
  const child = spawn('Xvfb', ['-displayfd', '3', '-screen', '0', '1280x1024x24', '-nolisten', 'tcp'], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
  });
  const [line] = (await once(child.stdio[3] as Readable, 'data', { signal: AbortSignal.timeout(15_000) })) as [Buffer];
  return { display: `:${line.toString().trim()}`, child };
}

const TIGERVNC: [string, string][] = [
  ['Xvfb', 'xvfb'],
  ['xtigervncviewer', 'tigervnc-viewer'],
  ['xdotool', 'xdotool'],
  ['openbox', 'openbox'],
  ['import', 'imagemagick'],
];

for (const encoding of ['ZRLE', 'Raw']) {
  test.serial(`T1 TigerVNC's viewer shows every pixel with ${encoding}, and its keys and pointer arrive`, async (t) => {
    t.timeout(120_000);
    if (!needs(t, ...TIGERVNC)) return;
    const [width, height] = [500, 400];
    const card = new TestCard(width, height);
    await using rig = new ConsoleRig(card);
    const { port } = await rig.listen({ transport: 'rfb' });
    const children: ChildProcess[] = [];
    try {
      const { display, child } = await startXvfb();
      children.push(child);
      const env = { ...process.env, DISPLAY: display };
      children.push(spawn('openbox', { env, stdio: 'ignore' }));
      await new Promise((resolve) => setTimeout(resolve, 700)); // it must be there before the window is
      const options = [
        '-SecurityTypes=None',
        '-AutoSelect=0',
        `-PreferredEncoding=${encoding}`,
        '-RemoteResize=0',
        '-MenuKey=',
      ];
      children.push(spawn('xtigervncviewer', [...options, `127.0.0.1::${port}`], { env, stdio: 'ignore' }));
      await inFolder(async (folder) => {
        const file = join(folder, 'screen.ppm');
        const shows = async (frame: number) => {
          await run('import', ['-window', 'root', '-depth', '8', file], { env });
          const screen = readPpm(await readFile(file));
          return findCard(screen, width, height, frame);
        };
        // The viewer lays a hint over its first seconds where it cannot be switched off
        const appears = async (frame: number) => {
          for (let i = 0; i < 60; i++) {
            const place = await shows(frame);
            if (place !== undefined) return place;
            await new Promise((resolve) => setTimeout(resolve, 250));
          }
          return undefined;
        };
        const place = await appears(0);
        t.truthy(place, 'the card is on the screen, pixel for pixel');
        card.drawCard(4);
        t.truthy(await appears(4), 'and so is the frame after it');
        const [left, top] = place!;
        await run(
          'xdotool',
          ['mousemove', String(left + 250), String(top + 200), 'click', '1', 'key', 'a', 'key', 'Right'],
          { env },
        );
        for (let i = 0; i < 100 && !rig.keyboard.keys.includes('106-'); i++) {
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
        t.deepEqual(
          rig.keyboard.keys.filter((key) => /^(30|106)[+-]$/.test(key)),
          ['30+', '30-', '106+', '106-'],
        );
        const press = rig.tablet.events.find((event) => event.endsWith(',1'))!;
        t.is(press, `${Math.round((250 * 32767) / 499)},${Math.round((200 * 32767) / 399)},1`);
      });
    } finally {
      for (const child of children.reverse()) child.kill();
    }
  });
}

type Screen = ReturnType<typeof readPpm>;

/** Where on the screen the whole card is, exactly. */
function findCard(screen: Screen, width: number, height: number, frame: number): [number, number] | undefined {
  const first = cardColour(0, 0, width, height, frame);
  const probes = [
    [1, 1],
    [width - 1, height - 1],
    [33, 7],
    [7, 33],
  ] as const;
  for (let y = 0; y + height <= screen.height; y++) {
    for (let x = 0; x + width <= screen.width; x++) {
      if (screen.colour(x, y) !== first) continue;
      if (!probes.every(([px, py]) => screen.colour(x + px, y + py) === cardColour(px, py, width, height, frame)))
        continue;
      let wrong = 0;
      for (let py = 0; py < height; py++) {
        for (let px = 0; px < width; px++) {
          if (screen.colour(x + px, y + py) !== cardColour(px, py, width, height, frame)) wrong++;
        }
      }
      if (wrong === 0) return [x, y];
    }
  }
  return undefined;
}
