import process from 'node:process';
import { createInterface } from 'node:readline';
import { formatJson, type JsonObject, type JsonValue, parseJson, QmpError } from '../../protocols/qmp/mod.ts';
import type { QmpClient } from '../../services/shared/mod.ts';
import { notice } from '../terminal.ts';
import { UsageError, type Verb } from '../usage_error.ts';
import { connectVm } from './client.ts';

const textEncoder = new TextEncoder();

export const qmpVerb: Verb = {
  name: 'qmp',
  summary: 'send commands to a machine’s monitor',
  help: `caisson qmp VM [COMMAND [KEY=VALUE … | JSON]]
Runs one QMP command and prints what it returns. Without a command, reads one per line and prints events, too.
A VALUE is JSON where it can be, else text.

  caisson qmp vm query-status
  caisson qmp vm migrate uri=tcp:127.0.0.1:4444
  caisson qmp vm nbd-server-start '{"addr": {"type": "unix", "data": {"path": "/tmp/nbd.sock"}}}'
  caisson qmp vm query-commands
`,
  async run([name, command, ...words]) {
    if (name === undefined) throw new UsageError('Cannot talk to a monitor: VM is missing (caisson qmp --help)');
    const given = command === undefined ? undefined : parseArguments(words);
    const { client } = await connectVm(name);
    try {
      if (command === undefined) return await converse(client);
      print(await client.request(command, given));
      return 0;
    } catch (error) {
      if (!(error instanceof QmpError)) throw error;
      notice(`caisson: ${error.class}: ${error.message}`);
      return 1;
    } finally {
      await client.close();
    }
  },
};

async function converse(client: QmpClient): Promise<number> {
  client.onEvent(({ event, data }) => process.stdout.write(`${formatJson({ event, data })}\n`));
  const lines = createInterface({ input: process.stdin, terminal: false });
  void client.closed.then(() => lines.close());
  const prompt = () => {
    if (process.stdin.isTTY) process.stderr.write('qmp> ');
  };
  prompt();
  for await (const line of lines) {
    const words = line.trim();
    if (words !== '') await answer(client, words);
    prompt();
  }
  return 0;
}

async function answer(client: QmpClient, line: string): Promise<void> {
  try {
    if (line.startsWith('{')) {
      const { execute, arguments: given } = parseJson(textEncoder.encode(line)) as JsonObject;
      print(await client.request(String(execute), given as JsonObject | undefined));
    } else {
      const [command, ...words] = line.split(/\s+/);
      print(await client.request(command!, parseArguments(words)));
    }
  } catch (error) {
    notice(error instanceof QmpError ? `${error.class}: ${error.message}` : (error as Error).message);
  }
}

/** `key=value` words, or one JSON object. @throws UsageError */
function parseArguments(words: readonly string[]): object | undefined {
  if (words.length === 0) return undefined;
  if (words[0]!.startsWith('{')) {
    try {
      return parseJson(textEncoder.encode(words.join(' '))) as JsonObject;
    } catch (cause) {
      throw new UsageError(`Cannot read the arguments: ${(cause as Error).message}`, { cause });
    }
  }
  return Object.fromEntries(
    words.map((word) => {
      const equals = word.indexOf('=');
      if (equals < 1) throw new UsageError(`Cannot read argument ${word}: expected KEY=VALUE`);
      return [word.slice(0, equals), parseValue(word.slice(equals + 1))];
    }),
  );
}

function parseValue(text: string): JsonValue {
  try {
    return parseJson(textEncoder.encode(text));
  } catch {
    return text; // no JSON: it is the text itself
  }
}

function print(value: JsonValue): void {
  process.stdout.write(
    `${JSON.stringify(value, (_, field) => (typeof field === 'bigint' ? Number(field) : field), 2)}\n`,
  );
}
