import { UsageError } from '../../usage_error.ts';
import type { Given } from './grammar.ts';

/** Words that ask for help among options, as QEMU has them */
const HELP = ['help', '?'];

/**
 * All `-o` of one command: parts of each by commas, where two are one of a value. Later values win. Undefined: one of
 * them asks for help.
 *
 * @throws UsageError for a list with an empty part: joined with the next it would become a comma of a value
 */
export function mergedOptions(given: Given): string | undefined {
  const merged = new Map<string, string>();
  for (const list of given.all('o')) {
    const parts = list.replaceAll(',,', '\0').split(',');
    if (parts.includes('') || /^,|[^,](?:,,)*,$/.test(list) || /^,+$/.test(list)) {
      throw new UsageError(`Cannot read -o ${list}: expected key=value`);
    }
    for (const part of parts) {
      const [key = ''] = part.split('=', 1);
      merged.delete(key);
      merged.set(key, part.replaceAll('\0', ',,'));
    }
  }
  return HELP.some((word) => merged.has(word)) ? undefined : [...merged.values()].join(',');
}
