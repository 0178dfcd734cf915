import { readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

export const ROOT = dirname(dirname(import.meta.dirname));
/** Other people's, made by tools, or not ours to check */
const SKIPPED = new Set(['node_modules', '.git', 'generated', 'fixtures']);

/** Every file of the project below `folder`, as paths from the root. */
export function listFiles(folder = '.'): string[] {
  const found: string[] = [];
  for (const item of readdirSync(join(ROOT, folder), { withFileTypes: true })) {
    if (SKIPPED.has(item.name)) continue;
    const path = join(folder, item.name);
    if (item.isDirectory()) found.push(...listFiles(path));
    else if (item.isFile()) found.push(path);
  }
  return found.sort();
}

export function readText(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8');
}

export interface ImportSpecifier {
  readonly specifier: string;
  /** `import type`, `export type … from`: gone at run time */
  readonly typeOnly: boolean;
}

/** The specifiers of static imports, re-exports and `import('…')` with a constant, outside comments. */
export function readImports(source: string): ImportSpecifier[] {
  const found: ImportSpecifier[] = [];
  const code = source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  const statement = /^\s*(?:import|export)\b(\s+type\b(?!\s*(?:,|from\b)))?[^'";]*?\bfrom\s*['"]([^'"\n]+)['"]/gm;
  for (const match of code.matchAll(statement)) found.push({ specifier: match[2]!, typeOnly: match[1] !== undefined });
  for (const match of code.matchAll(/^\s*import\s*['"]([^'"\n]+)['"]/gm))
    found.push({ specifier: match[1]!, typeOnly: false });
  for (const match of code.matchAll(/\bimport\(\s*['"]([^'"\n]+)['"]\s*[,)]/g))
    found.push({ specifier: match[1]!, typeOnly: false });
  return found;
}

/** The project's file that a relative specifier means, or the specifier itself for a package. */
export function resolveImport(from: string, specifier: string): string {
  if (!specifier.startsWith('.')) return specifier;
  return relative(ROOT, join(ROOT, dirname(from), specifier));
}

export function exists(path: string): boolean {
  return statSync(join(ROOT, path), { throwIfNoEntry: false }) !== undefined;
}
