import { HART_COUNTERS, RETIRED } from '../../emulator/hart/counters.ts';
import type { QmpArguments, QmpReturn } from '../../protocols/qmp/mod.ts';

const PROVIDER = 'caisson';
const SCHEMA = [RETIRED, ...HART_COUNTERS];
const MAX_HARTS = 64;

/** What can be asked: the counters of each hart. There is none of the machine as a whole. */
export function describeStatsSchemas(): QmpReturn<'query-stats-schemas'> {
  return [
    {
      provider: PROVIDER,
      target: 'vcpu',
      stats: SCHEMA.map(({ name, type, unit, exponent }) => ({
        name,
        type,
        ...(unit === undefined ? {} : { unit, base: 10 }),
        exponent: exponent ?? 0,
      })),
    },
  ];
}

/** Chooses from the machine's answer what the filter asks; nothing of it but numbers by known names goes on. */
export function describeStats(filter: QmpArguments<'query-stats'>, answer: unknown): QmpReturn<'query-stats'> {
  if (filter.target !== 'vcpu') return [];
  const { providers, vcpus } = filter;
  const names = wantedNames(providers);
  const results: QmpReturn<'query-stats'> = [];
  for (const [position, entry] of (Array.isArray(answer) ? answer : []).slice(0, MAX_HARTS).entries()) {
    const path = `/machine/soc0/harts[${position}]`;
    if (vcpus !== undefined && !vcpus.includes(path)) continue;
    const values = new Map<unknown, unknown>();
    const { stats } = (entry ?? {}) as { stats?: unknown };
    for (const item of Array.isArray(stats) ? stats : []) values.set(item?.name, item?.value);
    const chosen = SCHEMA.flatMap(({ name }) => {
      const value = values.get(name);
      if (!names(name) || typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) return [];
      return [{ name, value }];
    });
    results.push({ provider: PROVIDER, 'qom-path': path, stats: chosen });
  }
  return results;
}

/** Which counters the requests name; all where there is no request, or one without names */
function wantedNames(providers: QmpArguments<'query-stats'>['providers']): (name: string) => boolean {
  if (providers === undefined || providers.some(({ names }) => names === undefined)) return () => true;
  const wanted = new Set(providers.flatMap(({ names }) => names ?? []));
  return (name) => wanted.has(name);
}
