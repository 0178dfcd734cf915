import { type SuperviseOptions, supervise, type VmExit, type VmOptions } from '../../services/supervisor/mod.ts';

/** A cold boot takes seconds; a loaded two-core machine may need minutes */
const BOOT_TIMEOUT_MS = 5 * 60_000;
const MAX_KEPT_OUTPUT = 4 << 20;

export interface SmokeResult {
  readonly exit: VmExit | undefined;
  /** What the guest said on its serial line */
  readonly output: string;
  readonly timedOut: boolean;
}

export interface SmokeOptions extends SuperviseOptions {
  readonly onOutput?: (chunk: Uint8Array) => void;
  /** Typed as soon as the guest has said `after` */
  readonly type?: readonly { readonly after: string; readonly text: string }[];
  readonly timeoutMs?: number;
}

/** Starts a machine, looks on until its guest has powered off, and never longer than the limit. */
export async function runToEnd(vm: VmOptions, options: SmokeOptions = {}): Promise<SmokeResult> {
  await using machine = await supervise(vm, options);
  const decoder = new TextDecoder('latin1');
  const typing = [...(options.type ?? [])];
  let output = '';
  let looked = 0;
  machine.serial.on('data', (chunk: Uint8Array) => {
    options.onOutput?.(chunk);
    if (output.length < MAX_KEPT_OUTPUT) output += decoder.decode(chunk, { stream: true });
    for (let next = typing[0]; next !== undefined; next = typing[0]) {
      const at = output.indexOf(next.after, looked);
      if (at < 0) break;
      looked = at + next.after.length;
      machine.serial.write(next.text);
      typing.shift();
    }
  });
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(resolve, options.timeoutMs ?? BOOT_TIMEOUT_MS, undefined);
  });
  const exit = await Promise.race([machine.exit, late]);
  clearTimeout(timer);
  return { exit, output, timedOut: exit === undefined };
}

/** What the guest's one command printed and how it ended; undefined where it did not end. */
export function readRunOutput(output: string): { readonly text: string; readonly status: number } | undefined {
  const plain = output.replaceAll('\r', '');
  const start = plain.indexOf('caisson: guest is ready\n');
  const end = /^caisson: exit status (\d{1,3})$/m.exec(plain.slice(Math.max(start, 0)));
  if (start < 0 || end === null) return undefined;
  const body = plain.slice(start).slice('caisson: guest is ready\n'.length, end.index);
  // The kernel may speak in between.
  const lines = body.split('\n').filter((line) => !/^\[ *\d+\.\d+\] /.test(line));
  return { text: lines.join('\n').trim(), status: Number(end[1]) };
}
