import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { type RunningVm, supervise, type VmOptions } from '../services/supervisor/mod.ts';
import { describeProgress, describeResult, followMigration, type MigrationInfo } from './migration_progress.ts';
import { notice } from './terminal.ts';

/** How fast the guest writes its memory, in MiB a second */
const DIRTY_RATE = 200;
const LOAD_MS = 1000;
const ANSWER_TIMEOUT_MS = 60_000;
const MAX_TEXT_LENGTH = 1 << 16;

/** Moves the firmware under load between two machines of this command; 0 when its checksum is right afterwards. */
export async function demoMigrate(from: VmOptions, to: VmOptions): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-demo-'));
  const uri = `unix:${join(folder, 'migrate.sock')}`;
  // One machine's screen is enough; the destination opens its own page when it has the guest.
  const { vnc: _page, ...destinationOptions } = to;
  const machines: RunningVm[] = [];
  try {
    const said = new Set<string>();
    const onReport = ({ text }: { text: string }) => {
      if (!said.has(text)) notice(text); // both machines say that they are embedded
      said.add(text);
    };
    const report = { onReport };
    const source = await supervise({ ...from, serial: 'none' }, report);
    machines.push(source);
    const destination = await supervise({ ...destinationOptions, serial: 'none', incoming: uri }, report);
    machines.push(destination);
    notice(`Source       ${describeProcesses(source)}`);
    notice(`Destination  ${describeProcesses(destination)}`);
    const { url } = (await source.call('console')) as { url: string };
    notice(`Console      ${url}`);

    const here = new Prompt(source.serial);
    await here.until('ready');
    here.type(`dirty ${DIRTY_RATE}`);
    await here.until('dirty: ');
    notice(`The guest writes ${DIRTY_RATE} MiB/s of its memory, each word part of a running checksum`);
    await sleep(LOAD_MS);

    await source.call('migrate', { uri });
    const info = await followMigration(
      async () => (await source.call('query-migrate')) as MigrationInfo,
      showProgress(),
    );
    notice(describeResult(info));
    if (info.status !== 'completed') return 1;

    const there = new Prompt(destination.serial);
    there.type('stop');
    await there.until('stop: done');
    there.type('checksum');
    const verdict = await there.until('checksum: ', true);
    notice(`The guest, at its new place, says ${verdict}`);
    return /^checksum: OK /.test(verdict) ? 0 : 1;
  } finally {
    await Promise.all(machines.map((vm) => vm.close()));
    await rm(folder, { recursive: true, force: true });
  }
}

function describeProcesses({ pids }: RunningVm): string {
  const list = Object.entries(pids).map(([role, pid]) => `${role} ${pid}`);
  return list.length === 0 ? 'in this process' : `processes ${list.join(', ')}`;
}

/** One line that changes on a terminal, one line per round elsewhere */
function showProgress(): (info: MigrationInfo) => void {
  let round = 0;
  return (info) => {
    const now = info.ram?.['dirty-sync-count'] ?? 0;
    if (now === round || info.status === 'completed') return;
    round = now;
    process.stderr.write(`  ${describeProgress(info)}\n`);
  };
}

/** The firmware's prompt: types lines and waits for what it prints. */
class Prompt {
  readonly #serial: Duplex;
  #text = '';
  #wake: (() => void) | undefined;

  constructor(serial: Duplex) {
    this.#serial = serial;
    serial.on('data', (chunk: Uint8Array) => {
      this.#text = (this.#text + new TextDecoder().decode(chunk)).slice(-MAX_TEXT_LENGTH);
      this.#wake?.();
    });
    serial.on('close', () => this.#wake?.());
    serial.resume();
  }

  type(line: string): void {
    this.#serial.write(`${line}\r`);
  }

  /** The text is dropped up to and with what was waited for; `line`: gives its whole line. */
  async until(wanted: string, line = false): Promise<string> {
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    for (;;) {
      const at = this.#text.indexOf(wanted);
      const end = at < 0 ? -1 : line ? this.#text.indexOf('\n', at) : at + wanted.length;
      if (end >= 0) {
        const found = this.#text.slice(at, end).trim();
        this.#text = this.#text.slice(end);
        return found;
      }
      const leftMs = deadline - performance.now();
      if (leftMs <= 0 || this.#serial.destroyed) {
        throw new Error(`Cannot go on: the guest did not say ${JSON.stringify(wanted)}`);
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, Math.min(leftMs, 1000)).unref();
      });
    }
  }
}
