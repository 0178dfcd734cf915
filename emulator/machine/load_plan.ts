import { resetHartRegisters } from '../hart/reset.ts';
import { HART_HSM, HART_MIP, HART_STATE_BYTES } from '../kernel/assembly/hart_layout.ts';
import type { GuestMemory } from '../memory/guest_memory.ts';
import type { MemoryLayout } from '../memory/layout.ts';
import type { WasmMemory } from '../wasm/platform.ts';
import type { BootPlan } from './boot.ts';
import type { SharedHartSignals } from './hart_signals.ts';
import { BOOT_ROM } from './memory_map.ts';

export interface LoadTarget {
  readonly buffer: WasmMemory['buffer'];
  readonly layout: MemoryLayout;
  readonly guest: GuestMemory;
  readonly signals: SharedHartSignals;
  readonly harts: number;
}

/**
 * Puts a boot plan into memory and the harts at their start. RAM outside the plan keeps its contents.
 * @throws BootError where a file cannot be read any more; RAM has a part of it then
 */
export function loadBootPlan(plan: BootPlan, { buffer, layout, guest, signals, harts }: LoadTarget): void {
  const memory = new Uint8Array(buffer);
  memory.fill(0, layout.rom, layout.ram);
  memory.set(plan.rom, layout.rom + BOOT_ROM.base);
  for (const { address, bytes, memoryBytes } of plan.segments) {
    bytes.read(0, guest.view(address, bytes.length));
    guest.markDirty(address, bytes.length);
    if (memoryBytes > bytes.length) guest.fill(address + bytes.length, memoryBytes - bytes.length, 0);
  }
  const { start } = plan;
  for (let hart = 0; hart < harts; hart++) {
    const base = layout.hart(hart);
    memory.fill(0, base, base + HART_STATE_BYTES);
    Atomics.store(signals.words, signals.index(hart, HART_MIP), 0);
    const supervisor = start.privilege === 'S';
    resetHartRegisters(buffer, base, {
      id: hart,
      pc: start.pc,
      a0: supervisor ? start.a0 : hart,
      a1: start.a1,
      supervisor,
    });
    Atomics.store(signals.words, signals.index(hart, HART_HSM), supervisor && hart !== start.a0 ? 1 : 0);
  }
}
