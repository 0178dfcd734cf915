import test from 'ava';
import * as map from '../../../emulator/machine/memory_map.ts';

test('memory map: no two windows overlap, and none reaches RAM', (t) => {
  const ranges = [
    map.BOOT_ROM,
    map.TEST_DEVICE,
    map.RTC,
    map.CLINT,
    map.SSWI,
    map.PCIE_PIO,
    map.PLIC,
    map.UART0,
    map.VIRTIO_MMIO,
    map.FW_CFG,
    map.FLASH,
    map.PCIE_ECAM,
    map.PCIE_MMIO,
    { base: map.RAM_START, size: 3 * 2 ** 30 },
    map.PCIE_MMIO_HIGH,
  ].sort((a, b) => a.base - b.base);
  for (let index = 1; index < ranges.length; index++) {
    t.true(ranges[index - 1]!.base + ranges[index - 1]!.size <= ranges[index]!.base, `range ${index}`);
  }
});

test('virtioMmioSlot() and pcieInterrupt() refuse what does not exist and swizzle as the bridge does', (t) => {
  t.is(map.virtioMmioSlot(7).base, 0x1000_8000);
  t.throws(() => map.virtioMmioSlot(8), { instanceOf: RangeError });
  t.is(map.pcieInterrupt(0, 1), 32);
  t.is(map.pcieInterrupt(1, 1), 33);
  t.is(map.pcieInterrupt(3, 2), 32);
});
