// Writes what docs/cli.md takes from the verbs' own help. test/house/docs.test.ts compares.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Verb } from '../cli/usage_error.ts';

const ROOT = join(import.meta.dirname, '..');
const BEGIN = '<!-- begin: written by scripts/build_docs.ts -->\n';
const END = '<!-- end -->\n';

/** The verbs that cli/main.ts offers, in its order. */
export function verbNames(): string[] {
  const source = readFileSync(join(ROOT, 'cli', 'main.ts'), 'utf8');
  return [...source.matchAll(/^ {2}(\w+): async \(\) => \(await import\('\.\/verbs\//gm)].map((match) => match[1]!);
}

/** The text of docs/cli.md with the help of all verbs as it is now. */
export async function renderCliPage(page: string): Promise<string> {
  const sections: string[] = [];
  for (const name of verbNames()) {
    const exports = (await import(join(ROOT, 'cli', 'verbs', `${name}.ts`))) as Record<string, Verb>;
    const { summary, help, helpPages = [] } = exports[`${name}Verb`]!;
    sections.push(`## ${name}: ${summary}\n\n\`\`\`\n${help.trimEnd()}\n\`\`\`\n`);
    for (const page of helpPages) {
      sections.push(`### ${name} ${page.name}\n\n\`\`\`\n${page.help.trimEnd()}\n\`\`\`\n`);
    }
  }
  const from = page.indexOf(BEGIN) + BEGIN.length;
  const to = page.indexOf(END);
  if (from < BEGIN.length || to < from) throw new Error('Cannot write docs/cli.md: its two marks are missing');
  return `${page.slice(0, from)}\n${sections.join('\n')}\n${page.slice(to)}`;
}

if (import.meta.main) {
  const path = join(ROOT, 'docs', 'cli.md');
  writeFileSync(path, await renderCliPage(readFileSync(path, 'utf8')));
}
