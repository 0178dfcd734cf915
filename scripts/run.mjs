// `node scripts/run.mjs FILE ARGS…`: FILE (of this project) under Node 26, with the dependencies installed.
import { join } from 'node:path';
import process from 'node:process';
import { codeCache, ensureDependencies, handOver, ROOT } from './launch.mjs';

const [file, ...args] = process.argv.slice(2);
ensureDependencies();
// Tests and builds leave nothing behind.
handOver([join(ROOT, file), ...args], file.startsWith('cli/') ? codeCache() : {});
