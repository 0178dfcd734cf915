// Black-box tests against other people's programs; scripts/conformance.mjs installs the peers first.
export default {
  files: ['conformance/**/*.test.ts'],
  extensions: ['ts'],
  timeout: '20m',
  concurrency: 2,
};
