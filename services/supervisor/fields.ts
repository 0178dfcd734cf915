const MAX_TEXT_LENGTH = 4096;

/** A request of the monitor, the command or the library that cannot be carried out. */
export class ControlError extends Error {
  override readonly name = 'ControlError';
  readonly code: 'ERR_CONTROL_METHOD' | 'ERR_CONTROL_PARAMETER' | 'ERR_CONTROL_STATE' | 'ERR_CONTROL_ABSENT';
  constructor(code: ControlError['code'], text: string) {
    super(text);
    this.code = code;
  }
}

/** Parameters of one call, read field by field. */
export class Fields {
  readonly #method: string;
  readonly #fields: ReadonlyMap<string, unknown>;

  constructor(method: string, params: unknown) {
    this.#method = method;
    if (params === undefined || params === null) this.#fields = new Map();
    else if (typeof params === 'object' && !Array.isArray(params)) this.#fields = new Map(Object.entries(params));
    else throw this.#refuse('parameters', 'expected a map');
  }

  optionalText(name: string): string | undefined {
    const value = this.#fields.get(name);
    if (value === undefined || value === null) return undefined;
    if (typeof value !== 'string' || value.length > MAX_TEXT_LENGTH || value.includes('\0')) {
      throw this.#refuse(name, `expected text of at most ${MAX_TEXT_LENGTH} characters`);
    }
    return value;
  }
  text(name: string): string {
    const value = this.optionalText(name);
    if (value === undefined || value === '') throw this.#refuse(name, 'missing');
    return value;
  }
  flag(name: string): boolean {
    const value = this.#fields.get(name) ?? false;
    if (typeof value !== 'boolean') throw this.#refuse(name, 'expected true or false');
    return value;
  }
  port(name: string): number {
    const value = this.#fields.get(name);
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > 65_535) {
      throw this.#refuse(name, 'expected 0..65535');
    }
    return value;
  }
  /** Undefined where it is not given */
  optionalNumber(name: string): number | undefined {
    const value = this.#fields.get(name);
    if (value === undefined || value === null) return undefined;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
      throw this.#refuse(name, 'expected a whole number');
    }
    return value;
  }
  plain(): Record<string, unknown> {
    return Object.fromEntries(this.#fields);
  }

  #refuse(name: string, found: string): ControlError {
    return new ControlError('ERR_CONTROL_PARAMETER', `Cannot run ${this.#method} with ${name}: ${found}`);
  }
}
