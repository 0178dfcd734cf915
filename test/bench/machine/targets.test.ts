import test from 'ava';
import { describeTarget, judge, ratioOf, TARGETS } from '../../../bench/machine/targets.ts';

test('judge() holds ratios and figures of ours against their bound, which itself is enough', (t) => {
  t.is(judge(TARGETS.hash, { ratio: 1 }), 'met');
  t.is(judge(TARGETS.hash, { ratio: 0.99 }), 'missed');
  t.is(judge(TARGETS.hotRegister, { ours: 2000 }), 'met');
  t.is(judge(TARGETS.hotRegister, { ours: 2001 }), 'missed');
  t.is(judge(TARGETS.serial, { ours: 2 }), 'met');
  t.is(judge(TARGETS.serial, { ours: 1.9, ratio: 5 }), 'missed', 'the ratio is not what is asked for');
});

test('judge() says nothing where there is no target or no figure', (t) => {
  t.is(judge(undefined, { ratio: 9 }), undefined);
  t.is(judge(TARGETS.mix, { ours: 9 }), undefined);
  t.is(judge(TARGETS.idle, { ratio: 9 }), undefined);
});

test('describeTarget() shows must, and what is aimed for in brackets', (t) => {
  t.is(describeTarget(TARGETS.mix), '1.15 (1.6)');
  t.is(describeTarget(TARGETS.calls), '2.5');
  t.is(describeTarget(TARGETS.register), '≤ 25000');
  t.is(describeTarget(TARGETS.serial), '≥ 2');
  t.is(describeTarget(undefined), undefined);
});

test('ratioOf() is above 1 where ours is faster, for times and for rates', (t) => {
  t.is(ratioOf(50, 100), 2);
  t.is(ratioOf(50, 100, 'rate'), 0.5);
  t.is(ratioOf(50, undefined), undefined);
  t.is(ratioOf(0, 100), undefined);
  t.is(ratioOf(100, 0), undefined);
});
