// Differences by the name of what the handler recorded, less those where QEMU 7.2 is known to stray or where the
// specification leaves the choice.
import type { Case } from './program.ts';
import { RECORDED, type SystemProgram } from './system_program.ts';

type Field = (typeof RECORDED)[number];

/** A field whose difference is explained; `when` may look at both values */
export interface Allowance {
  readonly fields: readonly Field[];
  readonly why: string;
  readonly when: (at: Case, ours: bigint, theirs: bigint) => boolean;
}

export interface SystemDifferences {
  readonly texts: readonly string[];
  /** How many cases each explanation was needed for */
  readonly allowed: ReadonlyMap<string, number>;
  /** What cases ended with: a test that only ever sees one cause compares nothing */
  readonly causes: ReadonlyMap<number, number>;
}

const FRAME_HEADER_BYTES = 16;
const hex = (value: bigint) => `0x${value.toString(16)}`;

export function systemDifferences(
  program: SystemProgram,
  ours: Uint8Array,
  theirs: Uint8Array,
  allowances: readonly Allowance[],
): SystemDifferences {
  if (ours.length !== theirs.length)
    return { texts: [`${theirs.length} bytes, expected ${ours.length}`], allowed: new Map(), causes: new Map() };
  const views = [ours, theirs].map(
    ({ buffer, byteOffset, byteLength }) => new DataView(buffer, byteOffset, byteLength),
  );
  const texts: string[] = [];
  const allowed = new Map<string, number>();
  const causes = new Map<number, number>();
  for (const at of program.cases) {
    const found: string[] = [];
    const cause = Number(views[0]!.getBigUint64(at.from - program.data.base + FRAME_HEADER_BYTES, true));
    causes.set(cause, (causes.get(cause) ?? 0) + 1);
    for (const [index, field] of RECORDED.entries()) {
      const offset = at.from - program.data.base + FRAME_HEADER_BYTES + 8 * index;
      const [our, their] = views.map((view) => view.getBigUint64(offset, true)) as [bigint, bigint];
      if (our === their) continue;
      const excuse = allowances.find(({ fields, when }) => fields.includes(field) && when(at, our, their));
      if (excuse) allowed.set(excuse.why, (allowed.get(excuse.why) ?? 0) + 1);
      else found.push(`${field} ${hex(our)}, expected ${hex(their)}`);
    }
    if (found.length > 0) texts.push(`${at.name} ${hex(BigInt(at.word))} ${at.operands} → ${found.join('; ')}`);
  }
  return { texts, allowed, causes };
}
