import { randomNumbers } from '../../test/fixtures/log_image_file.ts';
import { HERE } from './two_sides.ts';

/** One command line for both sides; `@/` before the names of files. */
export interface Step {
  /** `qemu-img`, or `qemu-io` on both sides */
  readonly program: 'img' | 'qemu-io' | 'qemu-img';
  readonly args: readonly string[];
  /** Images that this may have made or changed */
  readonly touches: readonly string[];
}

export interface KnownImage {
  readonly name: string;
  readonly format: string;
  readonly sizeBytes: number;
  readonly under?: string;
  /** A qcow2 of version 2, which has no entries of zeroes */
  readonly old?: true;
}

const SIZES = ['64k', '1M', '1000k', '3M', '1536k', '2M', '4M', '5555200', '777k'];
const KIB = 1024;

/** Random command lines over a few small images, the same for a seed. */
export class CommandGenerator {
  readonly #random: (below: number) => number;
  readonly #images = new Map<string, KnownImage>();
  /** Made with preallocation */
  readonly #taken = new Set<string>();
  #count = 0;

  constructor(seed: number) {
    this.#random = randomNumbers(seed);
  }

  get images(): readonly KnownImage[] {
    return [...this.#images.values()];
  }

  /** What is known after a step: undefined takes an image off the list. */
  learn(name: string, image: KnownImage | undefined): void {
    if (image === undefined) this.#images.delete(name);
    else this.#images.set(name, image);
  }

  /**
   * Whether the two may differ in what of it is data: all of a VHDX is for QEMU, and of space that was taken beforehand
   * QEMU asks the file system.
   */
  isOpaque(image: KnownImage): boolean {
    return this.#chain(image).some((name) => this.#images.get(name)?.format === 'vhdx' || this.#taken.has(name));
  }

  chance(oneIn: number): boolean {
    return this.#random(oneIn) === 0;
  }

  next(): Step {
    const step = this.#next();
    if (/preallocation=(?!off)|subformat=fixed/.test(step.args.join(' ')))
      for (const name of step.touches) this.#taken.add(name);
    return step;
  }

  #next(): Step {
    const writable = this.images.filter(({ format }) => format !== 'vhdx' || this.chance(3));
    if (writable.length < 2 || (writable.length < 6 && this.chance(7))) return this.#create();
    const kinds: readonly (() => Step)[] = [
      () => this.#create(),
      ...Array.from({ length: 7 }, () => () => this.#io()),
      ...Array.from({ length: 3 }, () => () => this.#snapshot()),
      ...Array.from({ length: 3 }, () => () => this.#convert()),
      ...Array.from({ length: 3 }, () => () => this.#bitmap()),
      () => this.#rebase(),
      () => this.#rebase(),
      () => this.#commit(),
      () => this.#commit(),
      () => this.#resize(),
      () => this.#resize(),
      () => this.#amend(),
      () => this.#dd(),
      () => this.#compare(),
      () => this.#measure(),
      () => this.#measure(),
      () => this.#look(),
    ];
    return this.#pick(kinds)();
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#random(list.length)]!;
  }

  /** The names of an image and of what is under it. */
  #chain(image: KnownImage): string[] {
    const names: string[] = [];
    for (
      let at: KnownImage | undefined = image;
      at !== undefined && names.length < 16;
      at = this.#images.get(at.under ?? '')
    )
      names.push(at.name);
    return names;
  }

  #image(...formats: string[]): KnownImage {
    const some = this.images.filter(({ format }) => formats.length === 0 || formats.includes(format));
    return some.length === 0 || this.chance(25) ? this.#pick(this.images) : this.#pick(some);
  }

  #fresh(): string {
    // Now and then over an image that is there, but under no other.
    const free = this.images.filter(({ name }) => !this.images.some(({ under }) => under === name));
    if (free.length > 3 && this.chance(3)) return this.#pick(free).name;
    return `i${this.#count++}`;
  }

  #qcow2Options(under: boolean): string[] {
    const options: string[] = [];
    const old = this.chance(5);
    if (old) options.push('compat=0.10');
    const extended = !old && this.chance(4);
    if (extended) options.push('extended_l2=on');
    if (extended) options.push(`cluster_size=${this.#pick(['16k', '64k', '128k', '2M'])}`);
    else if (this.chance(2))
      options.push(`cluster_size=${this.#pick(['512', '1k', '4k', '32k', '64k', '256k', '2M'])}`);
    if (!old && this.chance(4)) options.push('lazy_refcounts=on');
    if (!old && this.chance(3)) options.push(`refcount_bits=${this.#pick([1, 2, 4, 8, 16, 32, 64])}`);
    if (!old && this.chance(4)) options.push(`compression_type=${this.#pick(['zlib', 'zstd'])}`);
    if (!under && !extended && this.chance(6))
      options.push(`preallocation=${this.#pick(['off', 'metadata', 'falloc', 'full'])}`);
    return options.length === 0 ? [] : ['-o', options.join(',')];
  }

  #options(format: string): string[] {
    if (format === 'qcow2') return this.#qcow2Options(false);
    if (format === 'vpc')
      return this.#pick([
        [],
        ['-o', 'subformat=fixed'],
        ['-o', 'force_size=on'],
        ['-o', 'subformat=fixed,force_size=on'],
      ]);
    return [];
  }

  #create(): Step {
    const below = this.images.length > 0 && this.chance(2) ? this.#image() : undefined;
    const name = this.#fresh();
    if (below !== undefined && below.name !== name) {
      const size = this.chance(2) ? [] : [this.#pick(SIZES)];
      const args = [
        'create',
        '-f',
        'qcow2',
        '-b',
        below.name,
        '-F',
        below.format,
        ...this.#qcow2Options(true),
        `${HERE}/${name}`,
        ...size,
      ];
      return { program: 'img', args, touches: [name] };
    }
    const format = this.#pick(['raw', 'qcow2', 'qcow2', 'qcow2', 'qcow2', 'vpc', 'vmdk', 'vhdx']);
    const args = ['create', '-f', format, ...this.#options(format), `${HERE}/${name}`, this.#pick(SIZES)];
    return { program: format === 'vhdx' ? 'qemu-img' : 'img', args, touches: [name] };
  }

  #range(sizeBytes: number): [offset: number, length: number] {
    const unit = this.#pick([512, 4 * KIB, 64 * KIB, 64 * KIB]);
    const units = Math.max(1, Math.floor(sizeBytes / unit));
    const length = Math.min(
      sizeBytes - (sizeBytes % 512),
      unit * (1 + this.#random(Math.min(units, this.#pick([2, 8, 40])))),
    );
    const offset = unit * this.#random(Math.max(1, Math.floor((sizeBytes - length) / unit) + 1));
    return [offset, length];
  }

  #io(): Step {
    const { name, format, sizeBytes } = this.#image('raw', 'qcow2', 'vpc', 'vmdk');
    const commands: string[] = [];
    const count = 1 + this.#random(5);
    for (let step = 0; step < count && sizeBytes >= 512; step++) {
      const [offset, length] = this.#range(sizeBytes);
      const kind = this.#random(10);
      if (kind < 6) commands.push(`write -P ${1 + this.#random(255)} ${offset} ${length}`);
      else if (kind === 6) commands.push(`write -z ${offset} ${length}`);
      else if (kind === 7) commands.push(`write -z -u ${offset} ${length}`);
      else if (kind === 8) commands.push(`write -P 0 ${offset} ${length}`);
      else commands.push(`discard ${offset} ${length}`);
    }
    const args = ['-d', 'unmap', '-f', format, ...commands.flatMap((command) => ['-c', command]), `${HERE}/${name}`];
    return { program: 'qemu-io', args, touches: [name] };
  }

  #snapshot(): Step {
    const { name } = this.#image('qcow2');
    const action = this.#pick(['-c', '-c', '-a', '-a', '-d']);
    return {
      program: 'img',
      args: ['snapshot', action, this.#pick(['s0', 's1', '1', '2']), `${HERE}/${name}`],
      touches: [name],
    };
  }

  #convert(): Step {
    const source = this.#image();
    const args = ['convert', '-f', source.format];
    const format = this.#pick(['raw', 'qcow2', 'qcow2', 'qcow2', 'vpc', 'vmdk']);
    if (this.chance(8) && source.format === 'qcow2')
      args.push('-l', this.#pick(['s0', 'snapshot.name=s1', 'snapshot.id=1']));
    if (this.chance(4)) args.push('-S', this.#pick(['0', '512', '4k', '64k', '1M']));
    if (this.chance(5)) args.push('-c');
    if (this.chance(10)) args.push('-W');
    if (this.chance(10)) args.push('-m', '1');
    const fresh = this.#fresh();
    const more = this.chance(8)
      ? this.images.filter(({ format, name }) => format === source.format && name !== fresh).slice(0, 1)
      : [];
    // QEMU compresses nothing over clusters that are there.
    if (this.chance(6) && !args.includes('-c')) {
      const target = this.#image();
      if (this.#chain(source).includes(target.name)) return this.#look();
      args.push('-n', '-O', target.format);
      if (this.chance(6)) args.push('--target-is-zero');
      args.push(...[source, ...more].map(({ name }) => `${HERE}/${name}`), `${HERE}/${target.name}`);
      return { program: 'img', args, touches: [target.name] };
    }
    if (format === 'qcow2' && source.under !== undefined && this.chance(2) && source.under !== fresh) {
      const under = this.#images.get(source.under);
      args.push('-B', source.under, '-F', under?.format ?? 'qcow2', ...this.#qcow2Options(true));
    } else args.push(...this.#options(format));
    if (this.chance(5) && source.format === 'qcow2' && format === 'qcow2') args.push('--bitmaps');
    if (this.#chain(source).includes(fresh)) return this.#look();
    args.push('-O', format, ...[source, ...more].map(({ name }) => `${HERE}/${name}`), `${HERE}/${fresh}`);
    return { program: 'img', args, touches: [fresh] };
  }

  #bitmap(): Step {
    const { name } = this.#image('qcow2');
    const bitmap = this.#pick(['b0', 'b1', 'b2']);
    const actions: string[] = [];
    const kind = this.#random(9);
    if (kind < 4) actions.push('--add');
    if (kind === 0) actions.push('-g', this.#pick(['512', '4k', '64k', '1M', '2M']));
    if (kind === 1) actions.push('--disable');
    if (kind === 2 || kind === 4) actions.push('--merge', this.#pick(['b0', 'b1', 'b2']));
    if (kind === 5) actions.push('--clear');
    if (kind === 6) actions.push('--disable');
    if (kind === 7) actions.push('--enable');
    if (kind === 8) actions.push('--remove');
    if (actions.includes('--merge') && this.chance(3)) {
      const other = this.#image('qcow2');
      actions.push('-b', `${HERE}/${other.name}`, '-F', other.format);
    }
    return { program: 'img', args: ['bitmap', ...actions, `${HERE}/${name}`, bitmap], touches: [name] };
  }

  #rebase(): Step {
    const { name, old, under } = this.#image('qcow2');
    // Of such an image over nothing QEMU 7.2 loses the zeroes.
    if (old === true && under === undefined) return this.#look();
    const below = this.#image();
    const options = this.chance(5) ? ['-u'] : [];
    // What is over this one must not come under it: QEMU's answer is a lock's.
    if (this.#chain(below).includes(name)) return this.#look();
    const to = this.chance(3) ? ['-b', ''] : ['-b', below.name, '-F', below.format];
    return { program: 'img', args: ['rebase', ...options, ...to, `${HERE}/${name}`], touches: [name] };
  }

  #commit(): Step {
    const over = this.images.filter(({ under }) => under !== undefined);
    const image = over.length === 0 ? this.#image() : this.#pick(over);
    const chain = this.#chain(image);
    if (chain.slice(1).some((name) => this.#images.get(name)?.format === 'vhdx')) return this.#look(); // only read here
    const options: string[] = [];
    if (this.chance(3)) options.push('-d');
    if (this.chance(4) && chain.length > 1) options.push('-b', `${HERE}/${this.#pick(chain.slice(1))}`);
    return { program: 'img', args: ['commit', ...options, `${HERE}/${image.name}`], touches: chain };
  }

  #resize(): Step {
    const { name, format } = this.#image('raw', 'qcow2');
    const options: string[] = [];
    if (this.chance(2)) options.push('--shrink');
    if (this.chance(5)) options.push(`--preallocation=${this.#pick(['off', 'metadata', 'falloc', 'full'])}`);
    const size = this.#pick([...SIZES, '+64k', '+1M', '-64k', '-512', '+512', '+1536', '-1M', '0']);
    return { program: 'img', args: ['resize', ...options, '-f', format, `${HERE}/${name}`, size], touches: [name] };
  }

  #amend(): Step {
    const { name } = this.#image('qcow2');
    const option = this.#pick([
      'compat=0.10',
      'compat=1.1',
      'lazy_refcounts=on',
      'lazy_refcounts=off',
      'refcount_bits=1',
      'refcount_bits=8',
      'refcount_bits=16',
      'refcount_bits=64',
      'size=4M',
      'size=2M',
      'compat=1.1,lazy_refcounts=on',
    ]);
    return { program: 'img', args: ['amend', '-o', option, `${HERE}/${name}`], touches: [name] };
  }

  #dd(): Step {
    const source = this.#image();
    const to = this.#fresh();
    if (this.#chain(source).includes(to)) return this.#look();
    const operands = [
      `if=${HERE}/${source.name}`,
      `of=${HERE}/${to}`,
      `bs=${this.#pick(['512', '4k', '1000', '64k', '1M'])}`,
    ];
    // qemu-img 7.2 takes one off the other where both are there.
    operands.push(...this.#pick([[], [`count=${this.#random(30)}`], [`skip=${this.#random(30)}`]]));
    return {
      program: 'img',
      args: ['dd', '-f', source.format, '-O', this.#pick(['raw', 'qcow2', 'vpc', 'vmdk']), ...operands],
      touches: [to],
    };
  }

  #compare(): Step {
    const [a, b] = [this.#image(), this.#image()];
    const args = [
      'compare',
      ...(this.chance(2) && !this.isOpaque(a) && !this.isOpaque(b) ? ['-s'] : []),
      '-f',
      a.format,
      '-F',
      b.format,
      `${HERE}/${a.name}`,
      `${HERE}/${b.name}`,
    ];
    return { program: 'img', args, touches: [] };
  }

  #measure(): Step {
    const image = this.#image();
    if (this.isOpaque(image)) return this.#look();
    const { name, format } = image;
    const to = this.chance(3) ? ['-O', 'raw'] : ['-O', 'qcow2', ...this.#qcow2Options(false)];
    return { program: 'img', args: ['measure', '--output=json', '-f', format, ...to, `${HERE}/${name}`], touches: [] };
  }

  #look(): Step {
    const { name } = this.#image();
    const what = this.#pick([
      ['info', '--backing-chain', '--output=json'],
      ['map', '--output=json'],
      ['map'],
      ['check', '--output=json'],
      ['check'],
      ['snapshot', '-l'],
    ]);
    if (what[0] === 'map' && this.isOpaque(this.#images.get(name)!)) return this.#compare();
    if (what[0] === 'check' && this.#images.get(name)?.format === 'vpc') return this.#measure(); // here it is checked
    return { program: 'img', args: [...what, `${HERE}/${name}`], touches: [] };
  }
}
