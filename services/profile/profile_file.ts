import { decodeFolded, encodeFolded, type FoldedStack, MAX_FOLDED_BYTES } from '../../protocols/folded/mod.ts';
import { renderProfilePage } from './page.ts';

/** What the machine tells of its profile, checked: it runs guest code, and may be taken over by it. */
export interface ProfileAnswer {
  readonly stacks: readonly FoldedStack[];
  readonly samples: number;
  readonly idle: number;
  readonly lost: number;
  /** In `ms` */
  readonly durationMs: number;
  readonly harts: number;
}

/** @throws WireError or TypeError where the machine's answer is none */
export function readProfileAnswer(answer: unknown): ProfileAnswer {
  const { folded, ...numbers } = (answer ?? {}) as Record<string, unknown>;
  if (!(folded instanceof Uint8Array) || folded.length > MAX_FOLDED_BYTES) {
    throw new TypeError('Cannot write the profile: the machine gave none');
  }
  const count = (name: string): number => {
    const value = numbers[name];
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
      throw new TypeError(`Cannot write the profile: ${name} is not a count`);
    }
    return value;
  };
  return {
    stacks: decodeFolded(folded),
    samples: count('samples'),
    idle: count('idle'),
    lost: count('lost'),
    durationMs: count('durationMs'),
    harts: count('harts'),
  };
}

/** The bytes for `path`: folded stacks where its name ends in `.folded`, else a page. */
export function profileFile(path: string, vmName: string, profile: ProfileAnswer): Uint8Array {
  if (path.endsWith('.folded')) return encodeFolded(profile.stacks);
  const page = renderProfilePage(profile.stacks, { title: `Profile of ${vmName}`, facts: describe(profile) });
  return new TextEncoder().encode(page);
}

function describe({ samples, idle, lost, durationMs, harts }: ProfileAnswer): string {
  const looks = samples + idle;
  const busy = looks === 0 ? 0 : (100 * samples) / looks;
  return [
    `${(durationMs / 1000).toFixed(1)} s`,
    `${harts} ${harts === 1 ? 'hart' : 'harts'}, ${busy.toFixed(busy < 10 ? 1 : 0)} % busy`,
    `${samples.toLocaleString('en-US')} samples`,
    ...(lost > 0 ? [`${lost.toLocaleString('en-US')} lost`] : []),
  ].join(' · ');
}
