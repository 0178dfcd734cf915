// Configuration space of a conventional PCI function (PCI Local Bus 3.0 §6.1): type 0 header, and its bits.

/** Configuration space of a conventional function, in `bytes` */
export const PCI_CONFIG_BYTES = 256;

export const PCI_COMMAND = 0x04;
export const PCI_STATUS = 0x06;
export const PCI_CLASS_REVISION = 0x08;
export const PCI_CACHE_LINE_SIZE = 0x0c;
export const PCI_BASE_ADDRESS_0 = 0x10;
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
export const PCI_CAPABILITY_LIST = 0x34;
export const PCI_INTERRUPT_LINE = 0x3c;
export const PCI_INTERRUPT_PIN = 0x3d;
/** First byte after the header, where capabilities begin */
export const PCI_STD_HEADER_BYTES = 0x40;

export const PCI_COMMAND_IO = 0x001;
export const PCI_COMMAND_MEMORY = 0x002;
export const PCI_COMMAND_MASTER = 0x004;
export const PCI_COMMAND_INTX_DISABLE = 0x400;
/** I/O, memory, bus master, parity, SERR, INTx disable */
export const PCI_COMMAND_WRITABLE = 0x547;
export const PCI_STATUS_INTERRUPT = 0x08;
export const PCI_STATUS_CAP_LIST = 0x10;

/** Devices of one bus */
export const PCI_SLOTS = 32;
