import { spawn } from 'node:child_process';
import { createWriteStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { DebianError } from './debian_error.ts';

const MAX_OUTPUT_BYTES = 64 << 20;

export interface ToolOptions {
  readonly cwd?: string;
  readonly signal?: AbortSignal | undefined;
  /** Standard output goes to this file, not to the result */
  readonly toFile?: string;
  readonly onErrorLine?: (line: string) => void;
}

export interface ToolResult {
  readonly status: number;
  readonly output: Buffer;
  /** The end of what it said on standard error */
  readonly errorText: string;
}

/**
 * Runs one program of the system, without a shell and in the C locale.
 * @throws DebianError ERR_DEBIAN_TOOL where it cannot be started; AbortError
 */
export async function runTool(
  command: string,
  args: readonly string[],
  options: ToolOptions = {},
): Promise<ToolResult> {
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const chunks: Buffer[] = [];
  let length = 0;
  let errorText = '';
  let partialLine = '';
  child.stderr.setEncoding('utf8');
  child.stderr.on('data', (text: string) => {
    errorText = (errorText + text).slice(-8192);
    const lines = (partialLine + text).split('\n');
    partialLine = lines.pop()!.slice(-8192);
    for (const line of lines) options.onErrorLine?.(line);
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', (error) =>
      reject(
        error.name === 'AbortError'
          ? error
          : new DebianError('ERR_DEBIAN_TOOL', `Cannot run ${command}: ${error.message}`, { cause: error }),
      ),
    );
    child.once('close', (status) => resolve(status ?? 255));
  });
  if (options.toFile !== undefined) {
    const [status] = await Promise.all([ended, pipeline(child.stdout, createWriteStream(options.toFile))]);
    return { status, output: Buffer.alloc(0), errorText };
  }
  child.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length;
    if (length > MAX_OUTPUT_BYTES) child.kill();
    else chunks.push(chunk);
  });
  const status = await ended;
  return { status, output: Buffer.concat(chunks), errorText };
}
