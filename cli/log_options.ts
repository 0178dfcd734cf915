import { FOREIGN_LOG_ITEMS, isLogItem, LOG_ITEMS, type LogItem } from '../emulator/trace/log_items.ts';
import { didYouMean } from './suggest.ts';
import { UsageError } from './usage_error.ts';

export type { LogItem };

/** What `-d help` prints, in QEMU's form. */
export function logItemsHelp(): string {
  const lines = LOG_ITEMS.map(({ name, help }) => `${name.padEnd(15)} ${help}`);
  return `Log items (comma separated):\n${lines.join('\n')}\n`;
}

/** `-d ITEM[,ITEM…]`. @throws UsageError naming the item, and the nearest one that exists */
export function parseLogItems(value: string): LogItem[] {
  return value.split(',').map((word) => {
    if (isLogItem(word)) return word;
    const known = LOG_ITEMS.map(({ name }) => name);
    if (FOREIGN_LOG_ITEMS.includes(word)) {
      throw new UsageError(`Cannot log ${word}: it is QEMU's, and shows nothing here; expected ${known.join(', ')}`);
    }
    throw new UsageError(`Cannot log ${word}: unknown${didYouMean(word, known)} (-d help lists all)`);
  });
}
