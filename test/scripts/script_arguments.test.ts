import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { asksForHelp, parseScriptArguments, ScriptUsageError } from '../../scripts/script_arguments.ts';
import { ROOT } from '../house/source_files.ts';

const usage = {
  help: '',
  options: {
    seconds: { type: 'string', default: '15', number: { least: 0.5, most: 100, fraction: true } },
    seed: { type: 'string', number: { least: 0, most: 10 } },
    engine: { type: 'string', oneOf: ['fast', 'slow'] },
    alone: { type: 'boolean', default: false },
  },
  operands: ['nbd', 'qcow2'],
} as const;

test('parseScriptArguments() gives defaults, values in both forms, flags and operands', (t) => {
  const none = parseScriptArguments([], usage);
  t.is(none.number('seconds'), 15);
  t.is(none.text('engine'), undefined);
  t.false(none.flag('alone'));
  const some = parseScriptArguments(['nbd', '--seconds', '1.5', '--seed=1e1', '--alone', '--', 'qcow2'], usage);
  t.is(some.number('seconds'), 1.5);
  t.is(some.number('seed'), 10);
  t.true(some.flag('alone'));
  t.deepEqual([...some.operands], ['nbd', 'qcow2']);
});

for (const [args, expected] of [
  [['--sede', '1'], /^Cannot use --sede: unknown; did you mean --seed$/],
  [['-x'], /^Cannot use -x: unknown/],
  [['--seed'], /^Cannot use --seed: its value is missing$/],
  [['--seed', 'many'], /^Cannot use --seed many: expected a whole number from 0 to 10$/],
  [['--seed='], /^Cannot use --seed : expected a whole number/],
  [['--seed', '1.5'], /a whole number/],
  [['--seconds', '0'], /expected a number from 0.5 to 100$/],
  [['--engine', 'warp'], /expected fast or slow$/],
  [['--alone=yes'], /^Cannot use --alone=yes: it takes no value$/],
  [['ndb'], /^Cannot use ndb: expected nbd, qcow2; did you mean nbd$/],
  [['--__proto__'], /^Cannot use --__proto__: unknown/],
] as const) {
  test(`parseScriptArguments() refuses ${args.join(' ')} in one line`, (t) => {
    t.throws(() => parseScriptArguments(args, usage), { instanceOf: ScriptUsageError, message: expected });
  });
}

test('asksForHelp() looks up to the two dashes', (t) => {
  t.true(asksForHelp(['x', '--help']));
  t.true(asksForHelp(['-h']));
  t.false(asksForHelp(['--', '--help']));
});

function script(file: string, ...args: string[]) {
  return spawnSync(process.execPath, [join(ROOT, file), ...args], { encoding: 'utf8', timeout: 60_000 });
}

for (const [file, wrong, expected] of [
  ['scripts/fuzz.ts', ['--secnods', '1'], /--secnods: unknown; did you mean --seconds/],
  ['scripts/conformance.ts', ['--mtach', 'x'], /--mtach: unknown; did you mean --match/],
  ['scripts/differential.ts', ['--seed', 'x'], /--seed x: expected a whole number/],
  ['scripts/litmus.ts', ['--engine', 'x'], /--engine x: expected/],
  ['bench/main.ts', ['ndb'], /Cannot measure ndb: expected machine, nbd, migration.*did you mean nbd/],
  ['bench/main.ts', ['machine', '--roudns', '3'], /roudns/],
  ['conformance/nbd/probe.ts', ['-x'], /SOCKET/],
] as const) {
  test(`${file} answers --help, and ${wrong.join(' ')} with exit status 2`, (t) => {
    const help = script(file, '--help');
    t.is(help.status, 0, help.stderr);
    t.true(help.stdout.split('\n').length > 4, 'a text that teaches');
    t.true(help.stdout.split('\n').every((line) => line.length <= 130));
    t.is(help.stderr.replace(/^\(.*\n|.*Warning.*\n/gm, ''), '');
    const bad = script(file, ...wrong);
    t.is(bad.status, 2, bad.stderr);
    t.regex(bad.stderr, expected);
    t.notRegex(bad.stderr, /^ +at /m, 'no stack');
    if (!file.endsWith('probe.ts')) t.is(bad.stderr.trim().split('\n').length, 1, bad.stderr);
  });
}
