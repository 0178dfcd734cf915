/**
 * Options of QEMU that there are none of here, and what to do instead: who types them knows what they want, and the
 * nearest of our own names would be a wrong answer.
 */
export const QEMU_OPTIONS: Readonly<Record<string, string>> = {
  '-boot': 'the kernel is started that -kernel names',
  '-cdrom': 'say -drive file=FILE,format=raw',
  '-chardev': 'the serial port is the terminal, see -serial',
  '-cpu': 'leave it out, there is one processor: RV64GC',
  '-daemonize': 'start it with & or as a service; caisson stop NAME ends it',
  '-dfilter': 'a log has all addresses; -d in_asm,int is the smallest',
  '-enable-kvm': 'leave it out, instructions are always translated, see -accel',
  '-fda': 'say -drive file=FILE,format=raw',
  '-fsdev': 'files of the host cannot be shared; give a disk: -drive',
  '-gdb': 'there is no debugger; -d int,in_asm logs what the guest does',
  '-hda': 'say -drive file=FILE,format=raw',
  '-hdb': 'say -drive file=FILE,format=raw',
  '-loadvm': 'machines are not saved in images; caisson migrate moves one that runs',
  '-monitor': 'caisson qmp NAME talks to a machine, or -qmp unix:PATH',
  '-net': 'there is no network; -device virtio-net-pci is a card without a cable',
  '-netdev': 'there is no network; -device virtio-net-pci is a card without a cable',
  '-nic': 'there is no network; -device virtio-net-pci is a card without a cable',
  '-nodefaults': 'leave it out, there are no devices by default but the screen (-nographic)',
  '-numa': 'there is one node',
  '-pflash': 'there is no flash; -bios FILE is the firmware',
  '-pidfile': 'caisson list --json has the process id',
  '-rtc': 'leave it out, the clock is the host’s',
  '-s': 'there is no debugger; -d int,in_asm logs what the guest does',
  '-sd': 'say -drive file=FILE,format=raw',
  '-trace': 'logs are -d ITEM, see -d help',
  '-usb': 'there is no USB; keyboard and tablet are virtio devices, and there with the screen',
  '-vga': 'leave it out, the screen is a virtio device; -nographic is without',
  '-virtfs': 'files of the host cannot be shared; give a disk: -drive',
};
