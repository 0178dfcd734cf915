import test from 'ava';
import fc from 'fast-check';
import { type CheckedRequest, CMD } from '../../../protocols/nbd/mod.ts';
import { InFlight } from '../../../services/nbd/in_flight.ts';

const request = (type: number, offset: number, length: number): CheckedRequest =>
  ({ type, cookie: 1n, offset, length }) as CheckedRequest;

test('InFlight admits what a plain list of the requests would, in whatever order they are over', (t) => {
  const step = fc.record({
    writes: fc.boolean(),
    offset: fc.integer({ min: 0, max: 30 }),
    length: fc.integer({ min: 1, max: 8 }),
    /** Which one is over before, of those that are worked on */
    over: fc.option(fc.nat(100)),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const inFlight = new InFlight({ requests: 6, requestBytes: 30 });
      const model: { request: CheckedRequest; leave: () => void }[] = [];
      for (const { writes, offset, length, over } of steps) {
        if (over !== null && model.length > 0) model.splice(over % model.length, 1)[0]!.leave();
        const next = request(writes ? CMD.WRITE : CMD.READ, offset, length);
        const bytes = model.reduce((sum, other) => sum + other.request.length, 0);
        const isFree = model.every(({ request: other }) => {
          const isApart = offset >= other.offset + other.length || other.offset >= offset + length;
          return isApart || !(writes || other.type === CMD.WRITE);
        });
        const expected = model.length === 0 || (model.length < 6 && bytes + length <= 30 && isFree);
        if (inFlight.size !== model.length || inFlight.bytes !== bytes) return false;
        if (inFlight.admits(next) !== expected) return false;
        if (expected) model.push({ request: next, leave: inFlight.enter(next) });
      }
      return true;
    }),
    { numRuns: 500 },
  );
  t.pass();
});
