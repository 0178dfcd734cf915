// Register map and bits of the 16550A UART, one byte each, as byte offsets in its window.

/** RBR when read, THR when written, DLL while LCR.DLAB */
export const DATA = 0;
/** IER; DLM while LCR.DLAB */
export const INTERRUPT_ENABLE = 1;
/** IIR when read, FCR when written */
export const INTERRUPT_ID = 2;
export const LINE_CONTROL = 3;
export const MODEM_CONTROL = 4;
export const LINE_STATUS = 5;
export const MODEM_STATUS = 6;
export const SCRATCH = 7;

export const IER_RECEIVED = 0x01;
export const IER_TRANSMIT_EMPTY = 0x02;
export const IER_LINE_STATUS = 0x04;
export const IER_MODEM_STATUS = 0x08;
export const IER_MASK = 0x0f;

export const IIR_NONE = 0x01;
export const IIR_MODEM_STATUS = 0x00;
export const IIR_TRANSMIT_EMPTY = 0x02;
export const IIR_RECEIVED = 0x04;
export const IIR_LINE_STATUS = 0x06;
export const IIR_TIMEOUT = 0x0c;
export const IIR_FIFO_ENABLED = 0xc0;

export const FCR_ENABLE = 0x01;
export const FCR_CLEAR_RECEIVE = 0x02;
export const FCR_CLEAR_TRANSMIT = 0x04;
/** Received bytes that raise an interrupt, by FCR bits 7:6 */
export const TRIGGER_LEVELS = [1, 4, 8, 14] as const;

export const LCR_DLAB = 0x80;

export const MCR_DTR = 0x01;
export const MCR_RTS = 0x02;
export const MCR_OUT1 = 0x04;
export const MCR_OUT2 = 0x08;
export const MCR_LOOPBACK = 0x10;
export const MCR_MASK = 0x1f;

export const LSR_DATA_READY = 0x01;
export const LSR_OVERRUN = 0x02;
export const LSR_BREAK = 0x10;
export const LSR_TRANSMIT_HOLDING_EMPTY = 0x20;
export const LSR_TRANSMITTER_EMPTY = 0x40;
/** Errors that raise a line status interrupt and clear when LSR is read */
export const LSR_ERRORS = LSR_OVERRUN | LSR_BREAK;

export const MSR_CTS = 0x10;
export const MSR_DSR = 0x20;
export const MSR_RI = 0x40;
export const MSR_DCD = 0x80;
/** "Changed since read" bits are the lines' bits, four places lower */
export const MSR_LINES = 0xf0;
export const MSR_DELTAS = 0x0f;
export const MSR_RI_TRAILING_EDGE = 0x04;
/** A terminal that is always there and ready */
export const MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD;

/** Depth of the receive FIFO, in `bytes`; 1 while FIFOs are off */
export const FIFO_BYTES = 16;

/** Lines that a modem would see in loopback: MCR's outputs on MSR's inputs. */
export function loopbackLines(mcr: number): number {
  return (
    ((mcr & MCR_RTS) !== 0 ? MSR_CTS : 0) |
    ((mcr & MCR_DTR) !== 0 ? MSR_DSR : 0) |
    ((mcr & MCR_OUT1) !== 0 ? MSR_RI : 0) |
    ((mcr & MCR_OUT2) !== 0 ? MSR_DCD : 0)
  );
}
