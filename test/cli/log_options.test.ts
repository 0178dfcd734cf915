import test from 'ava';
import { logItemsHelp, parseLogItems } from '../../cli/log_options.ts';
import { parseVmArguments } from '../../cli/options.ts';
import { LOG_ITEMS } from '../../emulator/trace/log_items.ts';

const KERNEL = ['-kernel', 'builtin:firmware'];

test('-d takes items, once or several times, and -D the file', (t) => {
  const { options } = parseVmArguments([...KERNEL, '-d', 'int,in_asm', '-d', 'int', '-D', '/tmp/log']);
  t.deepEqual(options.log, { items: ['int', 'in_asm'], file: '/tmp/log' });
  t.is(parseVmArguments(KERNEL).options.log, undefined);
  t.is(parseVmArguments([...KERNEL, '-D', '/tmp/log']).options.log, undefined, '-D alone logs nothing, as QEMU');
});

test('-d refuses words that are nothing, with the nearest that is something', (t) => {
  t.throws(() => parseLogItems('in_asn'), { message: /unknown; did you mean in_asm/ });
  t.throws(() => parseLogItems('int,'), { message: /Cannot log : unknown/ });
  t.throws(() => parseLogItems('out_asm'), { message: /QEMU's, and shows nothing here; expected in_asm/ });
});

test('-d help lists every item', (t) => {
  for (const { name } of LOG_ITEMS) t.true(logItemsHelp().includes(`\n${name} `), name);
});

test('-symbols may come several times', (t) => {
  t.deepEqual(parseVmArguments([...KERNEL, '-symbols', '/a', '-symbols', '/b']).options.symbols, ['/a', '/b']);
});
