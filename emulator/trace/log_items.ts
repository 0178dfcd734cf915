/** What can be logged, by QEMU's words (`-d`), in the order of its help. */
export const LOG_ITEMS = [
  { name: 'in_asm', help: 'each piece of guest code when it is first decoded, disassembled' },
  { name: 'int', help: 'each trap, interrupt and SBI call' },
  { name: 'exec', help: 'each instruction before it is executed (very slow, lots of logs)' },
  { name: 'cpu', help: 'the registers before each instruction (with exec)' },
  { name: 'fpu', help: 'the floating-point registers, too, where cpu shows the others' },
  { name: 'mmu', help: 'address translations that no TLB had, and page faults' },
  { name: 'guest_errors', help: 'accesses to addresses where nothing is' },
  { name: 'nochain', help: 'accepted: exec shows single instructions anyway' },
] as const;

export type LogItem = (typeof LOG_ITEMS)[number]['name'];

/** QEMU has these, too; there is nothing here that they could show. */
export const FOREIGN_LOG_ITEMS: readonly string[] = [
  'out_asm', 'op', 'op_opt', 'op_ind', 'op_plugin', 'unimp', 'pcall', 'cpu_reset', 'page', 'strace', 'plugin', 'all',
]; // biome-ignore format: a list

export function isLogItem(word: string): word is LogItem {
  return LOG_ITEMS.some(({ name }) => name === word);
}
