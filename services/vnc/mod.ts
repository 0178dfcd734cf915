export { loadAssets } from './assets.ts';
export type { BindAddress, BoundAddress } from './bind.ts';
export { Console, type ConsoleOptions, type Peer, type SharePolicy, type Viewer } from './console.ts';
export { Display } from './display.ts';
export { encodePng, encodePpm } from './png.ts';
export { listenRfb, type RfbListener, type RfbListenerOptions } from './rfb_listener.ts';
export { type ConsoleRoleOptions, consoleRole } from './role.ts';
export { listenWeb, type WebListener, type WebListenerOptions } from './web_listener.ts';
