// `node scripts/run.mjs FILE ARGS…`: FILE (of this project) under Node 26, with the dependencies installed.
import { join } from 'node:path';
import process from 'node:process';
import { codeCache, ensureDependencies, handOver, nodeFlags, ROOT } from './launch.mjs';

const [file, ...args] = process.argv.slice(2);
ensureDependencies();
// Tests and builds leave nothing behind.
if (file.startsWith('cli/')) handOver([join(ROOT, file), ...args], codeCache(), nodeFlags(args[0]));
else handOver([join(ROOT, file), ...args]);
