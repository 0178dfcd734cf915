import { createHash } from 'node:crypto';
import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { encodeFolded } from '../../../protocols/folded/mod.ts';
import { buildFlameTree } from '../../../services/profile/flame_tree.ts';
import { profileFile, readProfileAnswer } from '../../../services/profile/mod.ts';

const STACKS = [
  { frames: ['supervisor', 'b', 'c'], count: 30 },
  { frames: ['supervisor', 'a'], count: 10 },
  { frames: ['user', 'c'], count: 60 },
];
const ANSWER = { folded: encodeFolded(STACKS), samples: 100, idle: 300, lost: 0, durationMs: 12_340, harts: 2 };
const text = (path: string, answer: unknown = ANSWER): string =>
  new TextDecoder().decode(profileFile(path, 'vm', readProfileAnswer(answer)));

test('buildFlameTree() merges common callers, orders by name and keeps weights', (t) => {
  const { names, nodes } = buildFlameTree(STACKS, 'all');
  const rows = Array.from({ length: nodes.length / 5 }, (_, index) => {
    const [name, ...numbers] = nodes.slice(index * 5, index * 5 + 5);
    return [names[name!], ...numbers];
  });
  t.deepEqual(rows, [
    ['all', 0, 0, 100, 0],
    ['supervisor', 1, 0, 40, 0],
    ['a', 2, 0, 10, 10],
    ['b', 2, 10, 30, 0],
    ['c', 3, 10, 30, 30],
    ['user', 1, 40, 60, 0],
    ['c', 2, 40, 60, 60],
  ]);
});

test('a name that ends in .folded gives folded stacks, any other a page', (t) => {
  t.is(text('/tmp/p.folded'), 'supervisor;b;c 30\nsupervisor;a 10\nuser;c 60\n');
  const page = text('/tmp/p.html');
  t.regex(page, /^<!doctype html>/);
  t.true(page.includes('12.3 s · 2 harts, 25 % busy · 100 samples'));
});

test('the page loads nothing, and names of the guest cannot become markup or script', (t) => {
  const evil = '</script><script>alert(1)</script><img src=x onerror=alert(1)>';
  const page = text('/tmp/p.html', { ...ANSWER, folded: encodeFolded([{ frames: ['user', evil], count: 1 }]) });
  t.is(page.match(/<script/g)!.length, 2);
  t.is(page.match(/<\/script/g)!.length, 2);
  t.false(page.includes('<img'));
  t.false(/\b(?:src|href)=/.test(page.replace(/id="data">.*?<\/script>/s, '')));
  const policy = /Content-Security-Policy" content="([^"]+)"/.exec(page)![1]!;
  t.regex(policy, /^default-src 'none'/);
  const hash = (body: string): string => `'sha256-${createHash('sha256').update(body).digest('base64')}'`;
  const script = /<script>([\s\S]*?)<\/script>/.exec(page)![1]!;
  const style = /<style>([\s\S]*?)<\/style>/.exec(page)![1]!;
  t.true(policy.includes(`script-src ${hash(script)}`), 'only our script may run');
  t.true(policy.includes(`style-src ${hash(style)}`));
});

test('readProfileAnswer() refuses what a machine that was taken over may say', (t) => {
  for (const answer of [
    undefined,
    5,
    {},
    { ...ANSWER, folded: 'x' },
    { ...ANSWER, samples: -1 },
    { ...ANSWER, harts: 'x' },
  ]) {
    t.throws(() => readProfileAnswer(answer), { instanceOf: TypeError });
  }
  t.throws(() => readProfileAnswer({ ...ANSWER, folded: Uint8Array.of(1, 2, 3) }), { instanceOf: WireError });
});
