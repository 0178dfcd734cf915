export { checkMessagePack, DEFAULT_MESSAGEPACK_LIMITS, type MessagePackLimits } from './check.ts';
