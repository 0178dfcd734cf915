import test from 'ava';
import { ProgressLine } from '../../../cli/debian/progress.ts';

const MIB = 1 << 20;

function shown(isTTY: boolean): string {
  let text = '';
  const line = new ProgressLine({ isTTY, write: (part: string) => (text += part) });
  line.show({ phase: 'index', text: 'index of Debian sid' });
  for (let done = 0; done <= 100; done++)
    line.show({ phase: 'download', text: done < 50 ? 'a 1' : 'b 2', doneBytes: done * MIB, totalBytes: 100 * MIB });
  line.show({ phase: 'unpack', text: 'package 1 of 3' });
  line.end();
  return text;
}

test('ProgressLine changes one line on a terminal and ends it', (t) => {
  const text = shown(true);
  t.is(text.split('\n').length, 2);
  t.true(text.includes('\r\x1b[Kcaisson: fetches b 2: 100 of 100 MiB, 100 %'));
});

test('ProgressLine writes few lines into a log', (t) => {
  t.deepEqual(shown(false).split('\n'), [
    'caisson: fetches the index of Debian sid',
    'caisson: fetches a 1: 0 of 100 MiB, 0 %',
    'caisson: fetches a 1: 25 of 100 MiB, 25 %',
    'caisson: fetches b 2: 50 of 100 MiB, 50 %',
    'caisson: fetches b 2: 75 of 100 MiB, 75 %',
    'caisson: fetches b 2: 100 of 100 MiB, 100 %',
    'caisson: unpacks package 1 of 3',
    '',
  ]);
});
