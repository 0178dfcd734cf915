import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { decodePpm, type Picture } from '../guests/qemu.ts';
import { hasPrograms, mustRun } from '../nbd/peers.ts';
import { findChromium, startChromium } from '../vnc/chromium.ts';
import { ConsolePage, differingPixels, textRows } from './console_page.ts';
import { caisson, debianOrSkip, eventually, Guest, Scope, scratchFolder } from './guest.ts';

// Linux's own framebuffer console, seen and typed at in a browser.

const scope = new Scope();
let folder = '';
let guest: Guest | undefined;
let screen: ConsolePage | undefined;
let reason = 'no Chromium (apt: chromium)';

test.before(async (t) => {
  t.timeout(10 * 60_000);
  const executable = findChromium();
  if (executable === undefined) return;
  const debian = await debianOrSkip(t as ExecutionContext);
  if (debian === undefined) {
    reason = 'there is no Debian guest';
    return;
  }
  folder = scratchFolder(scope);
  guest = Guest.start(scope, { folder, name: 'screen', debian, args: [] });
  const browser = await startChromium(executable);
  scope.teardown(() => browser.close());
  await guest.ready();
  // What blinks cannot be compared.
  await guest.mustShell('echo 0 > /sys/class/graphics/fbcon/cursor_blink');
  screen = await ConsolePage.open(browser.context, await guest.said(/^Console +(http\S+)$/m));
});
test.after.always(() => scope.close());

const screenTest = (title: string, body: (t: ExecutionContext, guest: Guest, screen: ConsolePage) => Promise<void>) =>
  test.serial(title, async (t) => {
    t.timeout(3 * 60_000);
    if (guest === undefined || screen === undefined) {
      t.log(`SKIPPED: ${reason}`);
      t.pass();
      return;
    }
    await body(t, guest, screen);
  });

async function screendump(running: Guest, format: 'ppm' | 'png'): Promise<string> {
  const filename = join(folder, `screen.${format}`);
  await using monitor = await running.qmp();
  await monitor.execute('screendump', { filename, format });
  return filename;
}

async function dumped(running: Guest): Promise<Picture> {
  return decodePpm(readFileSync(await screendump(running, 'ppm')));
}

screenTest(
  "the page that the command prints shows Linux's text console, pixel for pixel",
  async (t, running, console) => {
    await eventually('rows of text', async () => textRows(await console.picture()) >= 3);
    await eventually(
      'the same pixels',
      async () => differingPixels(await console.picture(), await dumped(running)) === 0,
    );
    const { width, height } = await console.picture();
    t.is((await running.mustShell('cat /sys/class/graphics/fb0/virtual_size')).trim(), `${width},${height}`);
    t.is((await running.mustShell('cat /sys/class/tty/tty0/active')).trim(), 'tty1');
    t.deepEqual(console.complaints, []);
  },
);

screenTest(
  'a command typed in the page shows on the screen and has its effect in the guest',
  async (t, running, console) => {
    const before = await console.picture();
    await console.type('echo Typed_$((6*7)) > /tmp/x; cat /tmp/x\n');
    await eventually('the file', async () => (await running.shell('cat /tmp/x')).output === 'Typed_42\n');
    await eventually('two more rows of text', async () => textRows(await console.picture()) >= textRows(before) + 2);
    t.true(differingPixels(before, await console.picture()) > 300);
  },
);

screenTest(
  'what the guest prints on its screen comes to the page, in the colours of the guest',
  async (t, running, console) => {
    // The whole last row: a blue background, which is aa in the console's palette
    await running.mustShell("printf '\\033[2J\\033[5;1H\\033[44m\\033[2K\\033[0m\\033[8;1H' > /dev/tty1");
    const isBlue = (picture: Picture) => picture.at(picture.width >> 1, 4 * 16 + 8).join() === '0,0,170';
    await eventually('a blue row', async () => isBlue(await console.picture()));
    const picture = await console.picture();
    t.is(picture.at(picture.width >> 1, 3 * 16 + 8).join(), '0,0,0');
    t.is(picture.at(picture.width >> 1, 5 * 16 + 8).join(), '0,0,0');
    await eventually(
      'the same pixels',
      async () => differingPixels(await console.picture(), await dumped(running)) === 0,
    );
  },
);

screenTest('screendump writes the page’s picture as PPM and as PNG', async (t, running, console) => {
  const { width, height } = await console.picture();
  const picture = await dumped(running);
  t.deepEqual([picture.width, picture.height], [width, height]);
  const png = await screendump(running, 'png');
  const bytes = readFileSync(png);
  t.deepEqual(
    [bytes.subarray(1, 4).toString(), bytes.readUInt32BE(16), bytes.readUInt32BE(20)],
    ['PNG', width, height],
  );
  if (!hasPrograms(t, 'compare')) return;
  t.is(await mustRun(t, 'identify', ['-format', '%wx%h', png]), `${width}x${height}`);
  await mustRun(t, 'compare', ['-metric', 'AE', png, join(folder, 'screen.ppm'), 'null:']);
});

screenTest('every key of a US keyboard arrives as what it is', async (t, running, console) => {
  const text = '0123456789 abcxyz ABCXYZ `~!@#%^&*()-_=+[]{};:,.<>/?|';
  let arrived = '';
  for (let attempt = 0; attempt < 3 && arrived !== `${text}\n`; attempt++) {
    await console.type(`cat > /tmp/keys\n${text}\n`);
    await console.page.keyboard.press('Control+d');
    await console.type('touch /tmp/typed\n');
    await eventually('the shell is back', async () => (await running.shell('rm /tmp/typed')).status === 0);
    arrived = await running.mustShell('cat /tmp/keys');
    t.log(arrived.trim());
  }
  t.is(arrived, `${text}\n`);
  await console.type('sleep 1000\n');
  await eventually('it sleeps', async () => (await running.shell('pidof sleep')).status === 0);
  await console.page.keyboard.press('Control+c');
  await eventually('it is interrupted', async () => (await running.shell('pidof sleep')).status === 1);
  await console.type('echo after > /tmp/after\n');
  await eventually('the shell is back', async () => (await running.shell('cat /tmp/after')).output === 'after\n');
  t.deepEqual(console.complaints, []);
});

screenTest(
  'a pointer that moves and clicks in the page is an absolute pointer of the guest',
  async (t, running, console) => {
    const devices = await running.mustShell('cat /proc/bus/input/devices');
    const tablet = devices.split('\n\n').find((device) => /Tablet/i.test(device))!;
    const event = /event\d+/.exec(tablet)![0];
    running.type(`timeout 20 head -c 240 /dev/input/${event} > /tmp/pointer &\r`);
    await running.shell('sleep 0.5');
    const box = (await console.page.locator('#screen canvas').boundingBox())!;
    for (let step = 0; step < 8; step++) await console.page.mouse.move(box.x + 40 + 30 * step, box.y + 60 + 10 * step);
    await console.page.mouse.down();
    await console.page.mouse.up();
    await eventually('events', async () => (await running.shell('[ -s /tmp/pointer ]')).status === 0);
    // struct input_event: two longs of time, type, code, value. Type 3 is EV_ABS.
    const hex = await running.mustShell("od -An -v -tx2 -w24 /tmp/pointer | awk '{print $9, $10}' | sort -u");
    t.regex(hex, /^0003 0000$/m);
    t.regex(hex, /^0003 0001$/m);
  },
);

screenTest(
  'D5 the guest hears which size the page has, and the page goes on to show it',
  async (t, running, console) => {
    const mode = async () => (await running.mustShell('head -n 1 /sys/class/drm/card0-Virtual-1/modes')).trim();
    const before = await mode();
    await console.page.getByRole('button', { name: 'View' }).click();
    await console.page.getByRole('menuitemradio', { name: 'Resize the guest' }).click();
    await eventually('another preferred mode', async () => (await mode()) !== before);
    const after = await mode();
    t.regex(after, /^\d+x\d+$/);
    const viewport = (await console.page.evaluate(
      "[document.querySelector('#screen').clientWidth, document.querySelector('#screen').clientHeight]",
    )) as [number, number];
    const [width, height] = after.split('x').map(Number);
    const margins = [viewport[0] - width!, viewport[1] - height!];
    t.true(
      margins.every((margin) => margin >= 0 && margin <= 48),
      `${after} in ${viewport}`,
    );
    t.log(
      `${before} became ${after}; the screen is ${(await dumped(running)).width}x${(await dumped(running)).height}`,
    );
    await running.mustShell("printf '\\033[2J\\033[2;1Hnew size\\n' > /dev/tty1");
    await eventually(
      'the same pixels',
      async () => differingPixels(await console.picture(), await dumped(running)) === 0,
    );
    await console.page.evaluate('localStorage.clear()');
  },
);

screenTest('caisson console prints the page’s address; a second page shows the same', async (t, running, console) => {
  const { status, stdout } = await caisson(folder, ['console', running.name]);
  t.is(status, 0);
  const second = await ConsolePage.open(console.page.context(), stdout.trim());
  await eventually(
    'the same pixels',
    async () => differingPixels(await second.picture(), await console.picture()) === 0,
  );
  await second.page.close();
});
