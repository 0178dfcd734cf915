import { type ByteSource, readAll, readHead, WireError } from '../../protocols/bytes/mod.ts';
import { isElf } from '../../protocols/elf/mod.ts';
import { decodeElfSymbols, decodeKallsyms, decodeSystemMap, type GuestSymbol } from '../../protocols/symbols/mod.ts';
import { BootError } from '../machine/boot_error.ts';
import { type SymbolData, sortSymbols } from './symbols.ts';

/** Where Linux maps its image: the last 2 GiB (arch/riscv, "Virtual Memory Layout"); it does not move without a seed */
const LINUX_LINK_ADDRESS = 0xffff_ffff_8000_0000n;

export interface SymbolSources {
  /** As it was given: an ELF brings its own symbols */
  readonly kernel?: ByteSource | undefined;
  /** The kernel as it lies in RAM, and where: a Linux image carries a table */
  readonly image?: { readonly bytes: ByteSource; readonly address: number } | undefined;
  /** Files of the user: ELF or System.map; their names come before the kernel's */
  readonly files: readonly Uint8Array[];
}

/**
 * Names for what the guest executes, for logs and profiles.
 * @throws BootError where a file of the user's is neither
 */
export function collectSymbols({ kernel, image, files }: SymbolSources): SymbolData {
  const symbols: GuestSymbol[] = [];
  for (const [index, file] of files.entries()) {
    try {
      for (const symbol of isElf(file) ? decodeElfSymbols(file) : decodeSystemMap(file)) symbols.push(symbol);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      throw new BootError('ERR_BOOT_OPTIONS', `Cannot use symbol file ${index + 1}: ${error.message}`, {
        cause: error,
      });
    }
  }
  for (const symbol of kernelSymbols(kernel, image)) symbols.push(symbol);
  return sortSymbols(symbols);
}

function kernelSymbols(kernel: ByteSource | undefined, image: SymbolSources['image']): GuestSymbol[] {
  if (kernel !== undefined && isElf(readHead(kernel, 4))) {
    try {
      return decodeElfSymbols(readAll(kernel));
    } catch (error) {
      // The machine may run it all the same: sections are not needed for that
      if (error instanceof WireError) return [];
      throw error;
    }
  }
  if (image === undefined) return [];
  const { symbols } = decodeKallsyms(readAll(image.bytes)) ?? { symbols: [] };
  return symbols.flatMap(({ name, address, sizeBytes }) => [
    { name, sizeBytes, address: LINUX_LINK_ADDRESS + address },
    // Until it has switched its page tables on
    { name, sizeBytes, address: BigInt(image.address) + address },
  ]);
}
