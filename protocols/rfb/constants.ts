/** Encoding and pseudo-encoding numbers (RFB community spec §7.7, §7.8), as signed 32 bits. */
export const Encoding = {
  raw: 0,
  copyRect: 1,
  zrle: 16,
  /** Pseudo: cursor as pixels and bitmask */
  cursor: -239,
  desktopSize: -223,
  lastRect: -224,
  qemuPointerMotionChange: -257,
  qemuExtendedKeyEvent: -258,
  qemuLedState: -261,
  desktopName: -307,
  extendedDesktopSize: -308,
  fence: -312,
  continuousUpdates: -313,
  cursorWithAlpha: -314,
  extendedMouseButtons: -316,
  vmwareCursor: 0x574d5664,
  vmwareLedState: 0x574d5668,
} as const;

/** Compression level pseudo-encodings are −256 (level 0) to −247 (level 9). */
export const COMPRESSION_LEVEL_FIRST = -256;
export const COMPRESSION_LEVEL_LAST = -247;

export const SecurityType = { invalid: 0, none: 1, vncAuthentication: 2 } as const;

export const ClientMessageType = {
  setPixelFormat: 0,
  setEncodings: 2,
  framebufferUpdateRequest: 3,
  keyEvent: 4,
  pointerEvent: 5,
  clientCutText: 6,
  enableContinuousUpdates: 150,
  clientFence: 248,
  setDesktopSize: 251,
  qemu: 255,
} as const;

export const ServerMessageType = {
  framebufferUpdate: 0,
  setColourMapEntries: 1,
  bell: 2,
  serverCutText: 3,
  endOfContinuousUpdates: 150,
  serverFence: 248,
} as const;

/** `x` of an ExtendedDesktopSize rectangle: who asked for the change. */
export const ResizeReason = { server: 0, thisClient: 1, otherClient: 2 } as const;
/** `y` of an ExtendedDesktopSize rectangle. */
export const ResizeStatus = { ok: 0, prohibited: 1, outOfResources: 2, invalidLayout: 3, forwarded: 4 } as const;

/** Fence flags (§7.4.9 / §7.6.7). */
export const FenceFlag = { blockBefore: 1, blockAfter: 2, syncNext: 4, request: 0x8000_0000 } as const;
