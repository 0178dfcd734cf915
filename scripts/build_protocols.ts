// Makes the static protobuf modules from the .proto files: no reflection and no code from strings at run time.
import { execFile } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

export const PROTOCOL_SCHEMAS = [
  { schema: 'protocols/migration/control.proto', module: 'protocols/migration/generated/control.js' },
] as const;

/** The JavaScript module of one schema, as text. */
export async function generateProtocol(schema: string): Promise<string> {
  const cli = createRequire(import.meta.url).resolve('protobufjs-cli/bin/pbjs');
  const options = ['verify', 'create', 'convert', 'delimited', 'typeurl', 'service', 'comments'].map(
    (o) => `--no-${o}`,
  );
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [cli, '--target', 'static-module', '--wrap', 'es6', '--root', 'caisson', ...options, schema],
    { cwd: ROOT, maxBuffer: 16 << 20 },
  );
  return `// Made by scripts/build_protocols.ts from ${schema}; do not edit.\n${stdout}`;
}

/** What is committed now. */
export function readGenerated(module: string): Promise<string> {
  return readFile(join(ROOT, module), 'utf8');
}

if (import.meta.main) {
  for (const { schema, module } of PROTOCOL_SCHEMAS) {
    await mkdir(dirname(join(ROOT, module)), { recursive: true });
    await writeFile(join(ROOT, module), await generateProtocol(schema));
    process.stdout.write(`${module}\n`);
  }
}
