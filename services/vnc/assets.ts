import { readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Asset {
  readonly type: string;
  readonly bytes: Buffer;
}

const TYPES: ReadonlyMap<string, string> = new Map([
  ['.html', 'text/html; charset=utf-8'],
  ['.js', 'text/javascript; charset=utf-8'],
  ['.css', 'text/css; charset=utf-8'],
  ['.svg', 'image/svg+xml'],
  ['.txt', 'text/plain; charset=utf-8'],
]);

/** Files of the noVNC package that its client needs; they are served as they are. */
const NOVNC_FOLDERS = ['core', 'vendor/pako'];

/**
 * Reads everything that the console's port serves, once: the role opens no files afterwards. A request is looked up
 * by its exact path in this map, so there is no path to traverse.
 */
export function loadAssets(): ReadonlyMap<string, Asset> {
  const assets = new Map<string, Asset>();
  const page = fileURLToPath(new URL('./page/', import.meta.url));
  addFolder(assets, page, '/');
  // The package exports core/rfb.js and nothing else: its folder is one above
  const novnc = fileURLToPath(new URL('../', import.meta.resolve('@novnc/novnc')));
  for (const folder of NOVNC_FOLDERS) addFolder(assets, join(novnc, folder), posix.join('/novnc', folder, '/'));
  assets.set('/novnc/LICENSE.txt', { type: TYPES.get('.txt')!, bytes: readFileSync(join(novnc, 'LICENSE.txt')) });
  return assets;
}

function addFolder(assets: Map<string, Asset>, folder: string, prefix: string): void {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      addFolder(assets, path, `${prefix}${entry.name}/`);
      continue;
    }
    const type = TYPES.get(posix.extname(entry.name));
    if (entry.isFile() && type !== undefined) assets.set(prefix + entry.name, { type, bytes: readFileSync(path) });
  }
}
