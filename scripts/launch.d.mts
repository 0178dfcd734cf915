/** What of launch.mjs is tested */
export function codeCache(environment?: Readonly<Record<string, string | undefined>>): { NODE_COMPILE_CACHE?: string };
