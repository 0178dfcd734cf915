// Registers of the goldfish RTC, 32 bits each, as byte offsets in its window. Times are in `ns` since 1970.

/** Low half; reading it latches the high half */
export const TIME_LOW = 0x00;
/** High half as latched */
export const TIME_HIGH = 0x04;
/** Low half of the alarm; writing it arms the alarm with the high half written before */
export const ALARM_LOW = 0x08;
export const ALARM_HIGH = 0x0c;
export const IRQ_ENABLED = 0x10;
/** Any write disarms */
export const CLEAR_ALARM = 0x14;
/** 1 while armed */
export const ALARM_STATUS = 0x18;
/** Any write takes the interrupt back */
export const CLEAR_INTERRUPT = 0x1c;
