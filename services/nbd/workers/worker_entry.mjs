// Entry of a worker's process: `node worker_entry.mjs [FOLDER]`. In JavaScript, so that the cache of compiled code is
// there before Node meets the first file whose types it would have to strip: it loads a compiler for that.
import { existsSync } from 'node:fs';
import { enableCompileCache } from 'node:module';
import process from 'node:process';
import { resolveRelativeImports } from '../../shared/relative_imports.mjs';

const folder = process.argv[2];
// Where it cannot be read or written, everything is compiled anew
if (folder !== undefined) enableCompileCache(folder);
resolveRelativeImports();
// The clone has .ts, the published package .js
const main = new URL('./worker_process.ts', import.meta.url);
await import((existsSync(main) ? main : new URL('./worker_process.js', import.meta.url)).href);
