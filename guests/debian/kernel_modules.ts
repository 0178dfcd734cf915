/** Reads what the kernel's `modinfo` would: `key=value` strings of the section `.modinfo` of a module. */
export function readModuleInfo(module: Uint8Array): Map<string, string[]> {
  const view = new DataView(module.buffer, module.byteOffset, module.byteLength);
  const fail = (reason: string) => new Error(`Cannot read a kernel module: ${reason}`);
  if (module.length < 64 || view.getUint32(0) !== 0x7f454c46 || module[4] !== 2) throw fail('not an ELF64 file');
  const table = Number(view.getBigUint64(40, true));
  const count = view.getUint16(60, true);
  const nameTable = view.getUint16(62, true);
  if (!(table >= 64 && table <= module.length - count * 64) || nameTable >= count)
    throw fail('section table outside the file');
  const section = (index: number) => {
    const at = table + index * 64;
    const offset = Number(view.getBigUint64(at + 24, true));
    const size = Number(view.getBigUint64(at + 32, true));
    return { name: view.getUint32(at, true), type: view.getUint32(at + 4, true), offset, size };
  };
  const text = (from: number, to: number) =>
    Buffer.from(module.buffer, module.byteOffset + from, to - from).toString('latin1');
  const names = section(nameTable);
  for (let index = 0; index < count; index++) {
    const { name, type, offset, size } = section(index);
    const at = names.offset + name;
    if (type === 8 || text(at, Math.min(at + 9, module.length)) !== '.modinfo\0') continue;
    if (!(offset <= module.length && size <= module.length - offset)) throw fail('.modinfo outside the file');
    const info = new Map<string, string[]>();
    for (const pair of text(offset, offset + size).split('\0')) {
      const [key, value] = splitOnce(pair);
      if (value !== undefined) info.set(key, [...(info.get(key) ?? []), value]);
    }
    return info;
  }
  throw fail('no section .modinfo');
}

function splitOnce(pair: string): [string, string | undefined] {
  const at = pair.indexOf('=');
  return at < 0 ? [pair, undefined] : [pair.slice(0, at), pair.slice(at + 1)];
}

/** `virtio-gpu` and `virtio_gpu` are one module: the kernel writes dashes as underscores. */
export function moduleName(path: string): string {
  return path
    .slice(path.lastIndexOf('/') + 1)
    .replace(/\.ko(?:\.[a-z0-9]+)?$/, '')
    .replaceAll('-', '_');
}

const SIGNATURE_MAGIC = '~Module signature appended~\n';
/** `struct module_signature`: its last 4 bytes are the length of the signature, big-endian */
const SIGNATURE_TRAILER_BYTES = 12;

/**
 * A module without the signature that Debian's build appends. Checking it costs an emulated hart about half a second
 * for each module, and proves nothing here: apt has checked the package, and the kernel takes modules without one.
 */
export function withoutSignature(module: Uint8Array): Uint8Array {
  const text = Buffer.from(module.buffer, module.byteOffset, module.byteLength);
  const trailer = module.length - SIGNATURE_MAGIC.length - SIGNATURE_TRAILER_BYTES;
  if (trailer < 0 || text.toString('latin1', trailer + SIGNATURE_TRAILER_BYTES) !== SIGNATURE_MAGIC) return module;
  const length = text.readUInt32BE(trailer + SIGNATURE_TRAILER_BYTES - 4);
  return length <= trailer ? module.subarray(0, trailer - length) : module;
}

export interface LoadedModule {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** Modules of one level need only those of lower levels: they can be loaded side by side */
  readonly level: number;
}

/**
 * The wanted modules and all that they need, in an order in which each can be loaded, without signatures. `fetch` gives a module's plain
 * bytes, or undefined where the package has none: then the kernel has it built in, or does not have it at all.
 */
export async function resolveModules(
  wanted: readonly string[],
  fetch: (name: string) => Promise<Uint8Array | undefined>,
): Promise<{ modules: LoadedModule[]; absent: string[] }> {
  const modules: LoadedModule[] = [];
  const absent: string[] = [];
  const levels = new Map<string, number>();
  const visit = async (name: string): Promise<number> => {
    const known = levels.get(name);
    if (known !== undefined) return known; // also ends a cycle of soft dependencies
    levels.set(name, -1);
    const bytes = await fetch(name);
    if (bytes === undefined) {
      absent.push(name);
      return -1;
    }
    const info = readModuleInfo(bytes);
    const depends = (info.get('depends') ?? []).flatMap((list) => list.split(',')).filter((item) => item !== '');
    for (const soft of info.get('softdep') ?? []) {
      const before = /\bpre:\s*(.*?)(?:\bpost:|$)/.exec(soft)?.[1] ?? '';
      depends.push(...before.split(/\s+/).filter((item) => item !== ''));
    }
    let level = 0;
    for (const needed of depends) level = Math.max(level, (await visit(moduleName(needed))) + 1);
    levels.set(name, level);
    modules.push({ name, bytes: withoutSignature(bytes), level });
    return level;
  };
  for (const name of wanted) await visit(name);
  return { modules, absent };
}
