// The build of msgpackr without `new Function`; it ships without types of its own.
declare module 'msgpackr/index-no-eval' {
  export { Packr, Unpackr } from 'msgpackr';
}
