import { copyFileSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { hasPrograms } from '../nbd/peers.ts';
import { TwoSides } from './two_sides.ts';

// Command lines, wrong ones and such that look wrong: `caisson img --qemu-img` ends as qemu-img does, and says the same.

const IMAGES = [
  'create -q -f raw @/r 4M',
  'create -q -f qcow2 @/q 4M',
  'create -q -f qcow2 -b q -F qcow2 @/t',
  'create -q -f qcow2 -o compat=0.10 @/old 4M',
  'create -q -f vmdk @/k 4M',
];

const SIZES = [
  '1.5M',
  '1.3k',
  '0.1M',
  '0x10',
  '10e3',
  '1e6',
  '0',
  '513',
  '1.5',
  '.5k',
  '1.k',
  '1kB',
  'abc',
  '1M5',
  'nan',
];
const GROUPS: Readonly<Record<string, readonly string[]>> = {
  sizes: SIZES.flatMap((size) => [
    `create -f qcow2 @/n ${size}`,
    `resize --shrink -f raw @/r ${size}`,
    `resize @/q ${size}`,
    `measure --size ${size} -O qcow2`,
  ]),
  'options of create': [
    ...['0', '3', '16', '128', 'abc', '16k', '1.5'].map((bits) => `create -f qcow2 -o refcount_bits=${bits} @/n 4M`),
    ...['on', 'y', 'ON', '1'].map((flag) => `create -f qcow2 -o lazy_refcounts=${flag} @/n 4M`),
    ...['1000', '4M', 'abc', '1.5k'].map((size) => `create -f qcow2 -o cluster_size=${size} @/n 4M`),
    ...['0.10', 'v3', '3'].map((version) => `create -f qcow2 -o compat=${version} @/n 4M`),
    'create -f qcow2 -o compression_type=lz4 @/n 4M',
    'create -f qcow2 -o compat=0.10,compression_type=zstd @/n 4M',
    'create -f qcow2 -o extended_l2=on,cluster_size=8k @/n 4M',
    'create -f qcow2 -o nope=1 @/n 1M',
    'create -f qcow2 -b none -F qcow2 @/n 1M',
    'create -f qcow2 -b @/n -F qcow2 @/n 1M',
    'create -f qcow2 -F qcow2 @/n 1M',
    'create -f raw -o preallocation=full @/n 1M',
    'create -f vpc -o force_size=on,subformat=fixed @/n 1M',
    'create -f vmdk -o adapter_type=lsilogic,compat6=on @/n 1M',
    'create @/n 1M 2M',
    'create',
  ],
  'what is only accepted': [
    ...['0', '17', 'abc', '1'].map((count) => `convert -m ${count} @/q @/n`),
    ...['abc', '-1', '1M'].map((rate) => `convert -r ${rate} @/q @/n`),
    ...['nope', 'none'].flatMap((cache) => [`convert -T ${cache} @/q @/n`, `commit -t ${cache} @/t`]),
    ...['511', 'abc', '2G', '512'].map((size) => `convert -S ${size} @/q @/n`),
    'check -T none @/q',
  ],
  'options that do not go together': [
    'convert --target-is-zero @/q @/n',
    'convert --skip-broken-bitmaps -O qcow2 @/q @/n',
    'convert --bitmaps -O qcow2 -o compat=0.10 @/q @/n',
    'convert -c -O qcow2 -o preallocation=metadata @/q @/n',
    'convert -c -O vpc @/q @/n',
    'bitmap -g 64k --clear @/q b',
    'bitmap -F qcow2 --add @/q b',
    'bitmap @/q b',
    'resize --shrink --preallocation=full @/q 1M',
    'snapshot -c a -l @/q',
    'amend @/q',
    'amend -o backing_fmt=raw @/t',
    'rebase @/t',
  ],
  'what is not there': [
    ...['info', 'check', 'map', 'snapshot -l', 'commit', 'amend -o compat=1.1'].map((words) => `${words} @/none`),
    'info -f nope @/q',
    'nope',
    'info -x @/q',
    'info -f',
    'info @/q @/r',
    'info --outp=json @/none',
    'snapshot -a none @/q',
    'snapshot -d none @/q',
    'bitmap --clear @/q none',
    'commit @/q',
  ],
  'images that cannot do it': [
    'snapshot -l @/r',
    'check -r all @/k',
    'check -f raw @/r',
    'resize @/k 8M',
    'amend -o compat=1.1 @/k',
    'compare -f qcow2 -F qcow2 @/q @/r',
  ],
};

for (const [group, lines] of Object.entries(GROUPS)) {
  test.serial(`Q17 wrong command lines end as with qemu-img: ${group}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const sides = new TwoSides();
    const kept = mkdtempSync(join(tmpdir(), 'caisson-lines-'));
    t.teardown(() => {
      sides.remove();
      rmSync(kept, { recursive: true });
    });
    for (const line of IMAGES) t.is((await sides.qemu(line.split(' '), kept)).status, 0);
    for (const line of lines) {
      sides.clear();
      for (const folder of [sides.ours, sides.theirs]) {
        for (const name of readdirSync(kept)) copyFileSync(join(kept, name), join(folder, name));
      }
      const ours = await sides.img(line.split(' '));
      const theirs = await sides.qemu(line.split(' '));
      t.is(ours.status, theirs.status, `${line}\n${ours.said}\n${theirs.said}`);
      t.is(ours.out, theirs.out, line);
      t.is(ours.said, withoutGuess(theirs.said), line);
    }
  });
}

/** QEMU warns of formats that it guesses; here who calls for guessing wants it. */
function withoutGuess(said: string): string {
  return said.replace(/^WARNING: Image format was not specified(?:.*\n){3}/m, '');
}
