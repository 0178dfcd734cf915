import { QmpClient } from '../../services/shared/mod.ts';
import { findVm, type RegisteredVm } from '../../services/supervisor/mod.ts';
import { UsageError } from '../usage_error.ts';

/** A connection to the monitor of a running machine, for the verbs that control one. */
export async function connectVm(name: string): Promise<{ vm: RegisteredVm; client: QmpClient }> {
  const vm = await findVm(name);
  return { vm, client: await QmpClient.connect(vm.qmpPath) };
}

/** Splits words into flags (`--quit`, `--max-bandwidth=N` or `--max-bandwidth N`) and operands. @throws UsageError */
export function splitFlags(
  verb: string,
  args: readonly string[],
  flags: Readonly<Record<string, 'flag' | 'value'>>,
): { operands: string[]; flags: Map<string, string> } {
  const operands: string[] = [];
  const found = new Map<string, string>();
  for (let at = 0; at < args.length; at++) {
    const word = args[at]!;
    if (!word.startsWith('-') || word === '-') {
      operands.push(word);
      continue;
    }
    const equals = word.indexOf('=');
    const name = equals < 0 ? word : word.slice(0, equals);
    const kind = Object.hasOwn(flags, name) ? flags[name] : undefined;
    if (kind === undefined) {
      throw new UsageError(`Cannot use ${name} with ${verb}: expected ${Object.keys(flags).join(', ') || 'no option'}`);
    }
    if (kind === 'flag') {
      if (equals >= 0) throw new UsageError(`Cannot use ${word}: ${name} has no value`);
      found.set(name, '');
    } else {
      const value = equals < 0 ? args[++at] : word.slice(equals + 1);
      if (value === undefined) throw new UsageError(`Cannot use ${name}: its value is missing`);
      found.set(name, value);
    }
  }
  return { operands, flags: found };
}

/** @throws UsageError */
export function expectOperands(verb: string, operands: readonly string[], names: readonly string[]): string[] {
  if (operands.length < names.length) {
    throw new UsageError(`Cannot ${verb}: ${names[operands.length]} is missing (caisson ${verb} --help)`);
  }
  if (operands.length > names.length) throw new UsageError(`Cannot ${verb}: ${operands[names.length]} is too much`);
  return [...operands];
}
