import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { FoldedStack } from '../../protocols/folded/mod.ts';
import { buildFlameTree } from './flame_tree.ts';

export interface PageFacts {
  /** Of the page */
  readonly title: string;
  /** One line under it */
  readonly facts: string;
}

const file = (name: string): string => readFileSync(new URL(`./page/${name}`, import.meta.url), 'utf8');
const hash = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
const escapeText = (text: string): string => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);

/**
 * One file that shows a flame graph: script, style and data are in it, nothing is loaded. Names are the guest's text:
 * they are data to the script, and the page's policy lets no other script run.
 */
export function renderProfilePage(stacks: readonly FoldedStack[], { title, facts }: PageFacts): string {
  const style = file('page.css');
  const script = file('page.js');
  const data = JSON.stringify({ ...buildFlameTree(stacks, 'all'), facts });
  // No text of the data can end its element
  const json = data.replace(
    /[<\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  const values: Readonly<Record<string, string>> = {
    '%POLICY%': `default-src 'none'; base-uri 'none'; form-action 'none'; style-src ${hash(style)}; script-src ${hash(script)}`,
    '%TITLE%': escapeText(title),
    '/* STYLE */': style,
    '"DATA"': json,
    '/* SCRIPT */': script,
  };
  return file('index.html').replace(
    /%POLICY%|%TITLE%|\/\* STYLE \*\/|"DATA"|\/\* SCRIPT \*\//g,
    (mark) => values[mark]!,
  );
}
