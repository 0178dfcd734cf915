// Unit and property tests: no system packages, no network beyond loopback.
export default {
  files: ['test/**/*.test.ts'],
  extensions: ['ts'],
  timeout: '3m',
  concurrency: 2,
};
