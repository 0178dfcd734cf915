import { spawnSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));
const PROMPT = '> ';

const hasTmux = spawnSync('tmux', ['-V']).status === 0;

/** A real terminal, seen and typed at from outside. */
class Screen {
  readonly #socket: string;
  constructor(socket: string) {
    this.#socket = socket;
  }
  tmux(...args: string[]): string {
    const ran = spawnSync('tmux', ['-S', this.#socket, ...args], { encoding: 'utf8' });
    return ran.stdout;
  }
  keys(...keys: string[]): void {
    this.tmux('send-keys', ...keys);
  }
  async until(wanted: RegExp): Promise<string> {
    let text = '';
    for (let i = 0; i < 600; i++) {
      text = this.tmux('capture-pane', '-p', '-J', '-S', '-200');
      if (wanted.test(text)) return text;
      await sleep(100);
    }
    throw new Error(`${wanted} did not come:\n${text}`);
  }
}

async function open(t: ExecutionContext): Promise<Screen> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-tty-'));
  const screen = new Screen(join(folder, 'tmux'));
  t.teardown(async () => {
    screen.tmux('kill-server');
    await rm(folder, { recursive: true, force: true });
  });
  screen.tmux(
    '-f',
    '/dev/null',
    'new-session',
    '-d',
    '-x',
    '150',
    '-y',
    '50',
    'env',
    `XDG_RUNTIME_DIR=${folder}`,
    'PS1=# ',
    'sh',
  );
  await screen.until(/# /);
  return screen;
}

function start(screen: Screen, ...args: string[]): void {
  screen.keys(
    `${process.execPath} ${MAIN} ${args.join(' ')}; echo status=$?; stty -a | grep -o ' .\\?icanon\\| .\\?echo '`,
    'Enter',
  );
}

async function expectUsableTerminal(t: ExecutionContext, screen: Screen, status: number): Promise<void> {
  const text = await screen.until(/status=\d[\s\S]* icanon[\s\S]* echo/);
  t.regex(text, new RegExp(`status=${status}\\b`));
  t.notRegex(text, /-icanon|-echo /);
}

const terminalTest = (title: string, run: (t: ExecutionContext) => Promise<void>) =>
  test.serial(title, async (t) => {
    if (!hasTmux) {
      t.log('SKIPPED: tmux is missing (apt: tmux)');
      return t.pass();
    }
    await run(t);
  });

terminalTest('keys reach the guest, Ctrl-A h helps, Ctrl-A x quits and gives the terminal back', async (t) => {
  const screen = await open(t);
  start(screen, 'demo');
  await screen.until(/ready\n> /);
  screen.keys('help', 'Enter');
  await screen.until(/commands: help info/);
  screen.keys('C-a', 'h');
  await screen.until(/Ctrl-A x +quit/);
  screen.keys('C-c');
  await sleep(300);
  t.notRegex(screen.tmux('capture-pane', '-p'), /status=\d/, 'Ctrl-C is a key of the guest');
  screen.keys('C-a', 'x');
  await expectUsableTerminal(t, screen, 0);
});

terminalTest('the guest’s own exit status is the command’s, and the terminal comes back', async (t) => {
  const screen = await open(t);
  start(screen, 'run', '-nographic', '-bios', 'none', '-kernel', 'builtin:firmware');
  await screen.until(new RegExp(`ready\\n${PROMPT}`));
  screen.keys('poweroff 5', 'Enter');
  await expectUsableTerminal(t, screen, 5);
});

terminalTest('a machine role that is killed ends the command with 1, and the terminal comes back', async (t) => {
  const screen = await open(t);
  start(screen, 'run', '-nographic', '-bios', 'none', '-kernel', 'builtin:firmware');
  await screen.until(new RegExp(`ready\\n${PROMPT}`));
  const pane = screen.tmux('display-message', '-p', '#{pane_pid}').trim();
  const command = spawnSync('pgrep', ['-P', pane], { encoding: 'utf8' }).stdout.trim().split('\n')[0]!;
  const roles = spawnSync('pgrep', ['-P', command, '-a', '-f', 'role_entry.mjs machine|caisson-machine'], {
    encoding: 'utf8',
  });
  const machine = Number(roles.stdout.trim().split(/\s/)[0]);
  t.true(machine > 1, roles.stdout);
  process.kill(machine, 'SIGKILL');
  await screen.until(/The machine role ended unexpectedly \(signal SIGKILL\): the guest is gone/);
  await expectUsableTerminal(t, screen, 1);
});
