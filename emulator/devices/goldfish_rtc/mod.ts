export { RtcAlarm } from './alarm.ts';
export { GoldfishRtc } from './device.ts';
