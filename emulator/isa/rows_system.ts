// Zicsr, privileged instructions, cache-block operations: privileged specification and "CMO".
import { exact, i, type Row } from './row.ts';

export const SYSTEM_ROWS: readonly Row[] = [
  i('csrrw', 'Zicsr', 0x73, 1, (e) => e.system('csrrw'), { format: 'SYS' }),
  i('csrrs', 'Zicsr', 0x73, 2, (e) => e.system('csrrs'), { format: 'SYS' }),
  i('csrrc', 'Zicsr', 0x73, 3, (e) => e.system('csrrc'), { format: 'SYS' }),
  i('csrrwi', 'Zicsr', 0x73, 5, (e) => e.system('csrrwi'), { format: 'SYS' }),
  i('csrrsi', 'Zicsr', 0x73, 6, (e) => e.system('csrrsi'), { format: 'SYS' }),
  i('csrrci', 'Zicsr', 0x73, 7, (e) => e.system('csrrci'), { format: 'SYS' }),
  exact('mret', 'M-mode', 0x3020_0073, 0xffff_ffff, 'SYS', (e) => e.system('mret')),
  exact('sret', 'S-mode', 0x1020_0073, 0xffff_ffff, 'SYS', (e) => e.system('sret')),
  exact('wfi', 'S-mode', 0x1050_0073, 0xffff_ffff, 'SYS', (e) => e.system('wfi')),
  exact('sfence.vma', 'S-mode', 0x1200_0073, 0xfe00_7fff, 'SYS', (e) => e.system('sfence.vma')),
  exact('sinval.vma', 'Svinval', 0x1600_0073, 0xfe00_7fff, 'SYS', (e) => e.system('sinval.vma')),
  exact('sfence.w.inval', 'Svinval', 0x1800_0073, 0xffff_ffff, 'SYS', (e) => e.system('sfence.w.inval')),
  exact('sfence.inval.ir', 'Svinval', 0x1810_0073, 0xffff_ffff, 'SYS', (e) => e.system('sfence.inval.ir')),
  exact('cbo.inval', 'Zicbom', 0x0000_200f, 0xfff0_7fff, 'SYS', (e) => e.system('cbo.inval')),
  exact('cbo.clean', 'Zicbom', 0x0010_200f, 0xfff0_7fff, 'SYS', (e) => e.system('cbo.clean')),
  exact('cbo.flush', 'Zicbom', 0x0020_200f, 0xfff0_7fff, 'SYS', (e) => e.system('cbo.flush')),
  exact('cbo.zero', 'Zicboz', 0x0040_200f, 0xfff0_7fff, 'SYS', (e) => e.system('cbo.zero')),
];
