import test from 'ava';
import { compileFirmware, firmwareCompiler } from '../../../guests/firmware/compiler.ts';
import { FIRMWARE_COMPILER, firmwareElf } from '../../../guests/firmware/mod.ts';

test('firmwareElf() is a RISC-V ELF64 file that starts at the start of RAM', (t) => {
  const elf = firmwareElf();
  const view = new DataView(elf.buffer);
  t.deepEqual([...elf.subarray(0, 6)], [0x7f, 0x45, 0x4c, 0x46, 2, 1]);
  t.is(view.getUint16(18, true), 243, 'e_machine EM_RISCV');
  t.is(view.getBigUint64(24, true), 0x8000_0000n, 'e_entry');
  t.true(elf.length < 64 * 1024);
});

test('firmwareElf() is what its sources compile to, not an older build', (t) => {
  const compiler = firmwareCompiler();
  if (compiler !== FIRMWARE_COMPILER) {
    t.log(
      `SKIPPED: the image was built by "${FIRMWARE_COMPILER}", here is ${compiler ?? 'no riscv64-unknown-elf-gcc'}`,
    );
    t.pass();
    return;
  }
  t.true(Buffer.from(firmwareElf()).equals(compileFirmware()), 'run scripts/build_firmware.ts');
});
