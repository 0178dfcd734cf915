import { spawnSync } from 'node:child_process';
import test from 'ava';
import { EDID_MAX_SIDE, encodeEdid } from '../../protocols/virtio/mod.ts';

// What the virtio GPU tells of its display, read by the program that display makers check theirs with.

const SIZES = [
  [1280, 800],
  [1024, 768],
  [1920, 1080],
  [3840, 2160],
  [64, 64],
  [EDID_MAX_SIDE & ~7, EDID_MAX_SIDE],
] as const;

for (const [width, height] of SIZES) {
  test(`edid-decode finds the EDID of ${width}x${height} to conform, and prefers that size`, (t) => {
    const run = spawnSync('edid-decode', ['--check'], { input: encodeEdid(width, height), encoding: 'utf8' });
    if (run.error !== undefined) {
      t.log(`SKIPPED: edid-decode is not there (${run.error.message}); Debian's package edid-decode has it`);
      return t.pass();
    }
    t.is(run.status, 0, run.stdout);
    t.regex(run.stdout, /EDID conformity: PASS/);
    t.regex(run.stdout, new RegExp(`DTD 1: +${width}x${height} `));
    return undefined;
  });
}
