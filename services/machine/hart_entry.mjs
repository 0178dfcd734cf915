// Entry of a hart's thread: hart_worker.ts, whose files find each other by URL. See role_entry.mjs.
import { existsSync } from 'node:fs';
import { resolveRelativeImports } from '../shared/relative_imports.mjs';

resolveRelativeImports();
const main = new URL('./hart_worker.ts', import.meta.url);
await import((existsSync(main) ? main : new URL('./hart_worker.js', import.meta.url)).href);
