// Register map of the RISC-V PLIC (PLIC specification 1.0.0, "Memory Map"), as byte offsets in its window.

/** One bit for each source, read-only. Below it, from 0: priorities, one word for each source */
export const PENDING_BASE = 0x1000;
/** One bit for each source, `ENABLE_STRIDE` bytes for each context */
export const ENABLE_BASE = 0x2000;
export const ENABLE_STRIDE = 0x80;
/** Threshold and claim/complete, `CONTEXT_STRIDE` bytes for each context */
export const CONTEXT_BASE = 0x20_0000;
export const CONTEXT_STRIDE = 0x1000;
export const THRESHOLD = 0x0;
export const CLAIM_COMPLETE = 0x4;

/** Priorities and thresholds are 0..7 and keep their low bits (WARL) */
export const PRIORITY_MASK = 7;

/** What an access means; `index` is a source, a word of sources, or nothing, by kind */
export type PlicRegister =
  | { readonly kind: 'priority'; readonly source: number }
  | { readonly kind: 'pending'; readonly word: number }
  | { readonly kind: 'enable'; readonly context: number; readonly word: number }
  | { readonly kind: 'threshold'; readonly context: number }
  | { readonly kind: 'claim'; readonly context: number };

/** Which register is at a word-aligned offset, or undefined where there is none. */
export function plicRegister(offset: number, sources: number, contexts: number): PlicRegister | undefined {
  const words = Math.ceil(sources / 32);
  if (offset >= CONTEXT_BASE) {
    const context = Math.floor((offset - CONTEXT_BASE) / CONTEXT_STRIDE);
    if (context >= contexts) return undefined;
    switch ((offset - CONTEXT_BASE) % CONTEXT_STRIDE) {
      case THRESHOLD:
        return { kind: 'threshold', context };
      case CLAIM_COMPLETE:
        return { kind: 'claim', context };
      default:
        return undefined;
    }
  }
  if (offset >= ENABLE_BASE) {
    const context = Math.floor((offset - ENABLE_BASE) / ENABLE_STRIDE);
    const word = ((offset - ENABLE_BASE) % ENABLE_STRIDE) / 4;
    return context < contexts && word < words ? { kind: 'enable', context, word } : undefined;
  }
  if (offset >= PENDING_BASE) {
    const word = (offset - PENDING_BASE) / 4;
    return word < words ? { kind: 'pending', word } : undefined;
  }
  const source = offset / 4;
  return source > 0 && source < sources ? { kind: 'priority', source } : undefined;
}
