import test from 'ava';
import { type FinisherRequest, Syscon } from '../../../../emulator/devices/syscon/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';

test('Syscon: a program reports its result, a kernel powers off and reboots', (t) => {
  const requests: FinisherRequest[] = [];
  const syscon = new Syscon((request) => requests.push(request));
  syscon.write(0, 4, 0x5555);
  syscon.write(0, 4, 0x002a_3333);
  syscon.write(0, 4, 0xffff_3333);
  syscon.write(0, 2, 0x7777);
  t.deepEqual(requests, [
    { kind: 'exit', code: 0 },
    { kind: 'exit', code: 42 },
    { kind: 'exit', code: 0xffff },
    { kind: 'reset' },
  ]);
});

test('Syscon: a guest that writes something else, elsewhere or a single byte, goes on', (t) => {
  const syscon = new Syscon(() => t.fail());
  syscon.write(0, 4, 0x1234);
  syscon.write(4, 4, 0x5555);
  syscon.write(0, 1, 0x55);
  t.is(syscon.read(), 0);
  syscon.prepareState(syscon.saveState(), 1)();
  t.throws(() => syscon.prepareState({}, 1), { instanceOf: StateError });
  t.throws(() => syscon.prepareState(null, 2), { instanceOf: StateError });
});
