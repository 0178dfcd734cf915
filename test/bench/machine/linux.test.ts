import test from 'ava';
import { clocksAgree, ramOffset } from '../../../bench/machine/linux.ts';
import { LINUX_COMMANDS, parallelScript, prepareScript } from '../../../bench/machine/linux_commands.ts';
import { parseAnswer } from '../../../bench/machine/linux_guest.ts';

test('parseAnswer() reads the guest’s clocks, the status and the output without its ends', (t) => {
  t.deepEqual(parseAnswer('12.34 13.36 0  5 blocks\r\nin\r\n'), { guestMs: 1020, status: 0, output: '5 blocks\nin' });
  t.deepEqual(parseAnswer('12.34 12.34 127 '), { guestMs: 0, status: 127, output: '' });
  for (const wrong of ['', '12.34 13.36', 'x 1 0 ok', '12 13 0 ok']) {
    t.throws(() => parseAnswer(wrong), { message: /Cannot read the guest's answer/ }, wrong);
  }
});

test('clocksAgree() allows a grain and a share, in both directions', (t) => {
  t.true(clocksAgree({ wallMs: 100, guestMs: 70 }));
  t.false(clocksAgree({ wallMs: 100, guestMs: 50 }));
  t.true(clocksAgree({ wallMs: 10_000, guestMs: 10_500 }));
  t.false(clocksAgree({ wallMs: 10_000, guestMs: 9000 }));
});

test('every script fits a line of the guest’s terminal, and none holds what ends an answer', (t) => {
  for (const percent of [1, 100, 1000]) {
    const scripts = [
      prepareScript(percent),
      parallelScript(2),
      ...LINUX_COMMANDS.map((command) => command.script(percent)),
    ];
    for (const script of scripts) {
      t.true(script.length < 900, script);
      t.notRegex(script, /\n/, script);
      t.notRegex(script, /\.\d+e|NaN|\$\{/, script);
    }
  }
});

test('parallelScript() starts as many jobs as it is told and waits for them', (t) => {
  t.is(parallelScript(2).match(/ &/g)?.length, 2);
  t.regex(parallelScript(1), /& wait$/);
});

test('ramOffset() is where our RAM lies in the shared memory, and 0 for a mapping that is RAM alone', (t) => {
  t.is(ramOffset('qemu', 1, 512), 0);
  t.true(ramOffset('ours', 2, 512) > ramOffset('ours', 1, 512));
  t.is(ramOffset('ours', 1, 512) % 4096, 0);
});
