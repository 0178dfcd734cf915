/** What of launch.mjs is tested, and used by the benchmarks */
export function codeCache(environment?: Readonly<Record<string, string | undefined>>): { NODE_COMPILE_CACHE?: string };
export function nodeFlags(verb: string | undefined): string[];
