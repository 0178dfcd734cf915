export { Aclint, AclintSswi } from './device.ts';
