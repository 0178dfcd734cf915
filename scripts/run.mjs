// `node scripts/run.mjs FILE ARGS…`: FILE (of this project) under Node 26, with the dependencies installed.
import { join } from 'node:path';
import process from 'node:process';
import { ensureDependencies, handOver, ROOT, runCommand } from './launch.mjs';

const [file, ...args] = process.argv.slice(2);
ensureDependencies();
// Tests and builds leave nothing behind.
if (file === 'cli/main.ts') await runCommand(args);
else handOver([join(ROOT, file), ...args]);
