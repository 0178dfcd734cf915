import type { Manifest } from '../../protocols/migration/mod.ts';
import { MAX_REASONS, type MachineDescription, printable } from '../../protocols/migration/mod.ts';
import { decodeMachineConfig, firstDifference } from '../shared/device_state.ts';

/** The one RAM block of `-M virt`, by QEMU's name */
const RAM_NAME = 'riscv_virt_board.ram';

export function makeManifest(machine: MachineDescription): Manifest {
  return {
    producer: 'caisson',
    ram: [{ name: RAM_NAME, pages: machine.ramPages }],
    devices: machine.devices,
    config: machine.config,
  };
}

/**
 * Why a guest with this manifest cannot run in our machine; empty when it can. Older device versions pass: the
 * device itself reads or refuses them when its state comes.
 */
export function compareManifest(theirs: Manifest, ours: MachineDescription): string[] {
  const reasons: string[] = [];
  const [block] = theirs.ram;
  if (theirs.ram.length !== 1 || block?.name !== RAM_NAME) {
    const names = theirs.ram.map((ram) => ram.name).join(', ');
    reasons.push(`RAM blocks: source has ${names || 'none'}, destination has ${RAM_NAME}`);
  } else if (block.pages !== ours.ramPages) {
    reasons.push(`RAM size: source has ${block.pages * 4} KiB, destination has ${ours.ramPages * 4} KiB`);
  }
  let config: string | undefined;
  try {
    config = firstDifference(decodeMachineConfig(theirs.config), decodeMachineConfig(ours.config));
  } catch (error) {
    config = `config: ${error instanceof Error ? error.message : 'not readable'}`;
  }
  if (config !== undefined) reasons.push(config);
  const here = new Map(ours.devices.map((device) => [device.name, device.version]));
  const there = new Set<string>();
  for (const { name, version } of theirs.devices) {
    const known = here.get(name);
    if (there.has(name)) reasons.push(`device ${name}: twice in the manifest`);
    else if (known === undefined) reasons.push(`device ${name}: the destination has none`);
    else if (version > known) reasons.push(`device ${name}: version ${version}, destination reads up to ${known}`);
    there.add(name);
  }
  for (const name of here.keys()) if (!there.has(name)) reasons.push(`device ${name}: the source has none`);
  return reasons.slice(0, MAX_REASONS).map(printable);
}
