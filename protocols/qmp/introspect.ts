import { QMP_SCHEMA } from './schema.ts';
import type { QmpMembers, QmpSchema, QmpTypeRef } from './schema_types.ts';

/** JSON types of the built-in ones (QEMU docs/devel/qapi-code-gen, "Client JSON Protocol introspection") */
const JSON_TYPES: { readonly [name: string]: string } = {
  str: 'string',
  number: 'number',
  bool: 'boolean',
  any: 'value',
};
/** All integer types look alike to a client. */
const INTEGER_NAMES = new Set(['int', 'size', 'uint8', 'uint16', 'uint32']);

export interface SchemaInfo {
  readonly name: string;
  readonly 'meta-type': 'builtin' | 'enum' | 'array' | 'object' | 'command' | 'event';
  readonly [detail: string]: unknown;
}

/** The answer of `query-qmp-schema`. Names of our own types are numbers: a client must not depend on them. */
export function introspect(schema: QmpSchema = QMP_SCHEMA): SchemaInfo[] {
  return new Introspection(schema).run();
}

class Introspection {
  readonly #schema: QmpSchema;
  readonly #out: SchemaInfo[] = [];
  readonly #named = new Map<string, string>();
  #next = 0;

  constructor(schema: QmpSchema) {
    this.#schema = schema;
  }

  run(): SchemaInfo[] {
    for (const [name, command] of Object.entries(this.#schema.commands)) {
      const argType =
        typeof command.arguments === 'string' ? this.#type(command.arguments) : this.#members(command.arguments ?? {});
      const retType = command.returns === undefined ? this.#members({}) : this.#type(command.returns);
      this.#out.push({ name, 'meta-type': 'command', 'arg-type': argType, 'ret-type': retType, 'allow-oob': false });
    }
    for (const [name, data] of Object.entries(this.#schema.events)) {
      this.#out.push({ name, 'meta-type': 'event', 'arg-type': this.#members(data) });
    }
    return this.#out;
  }

  #type(ref: QmpTypeRef): string {
    if (typeof ref !== 'string') {
      const element = this.#type(ref[0]);
      return this.#once(`[${element}]`, `[${element}]`, (name) => ({
        name,
        'meta-type': 'array',
        'element-type': element,
      }));
    }
    if (INTEGER_NAMES.has(ref)) return this.#builtin('int', 'int');
    const jsonType = JSON_TYPES[ref];
    if (jsonType !== undefined) return this.#builtin(ref, jsonType);
    const type = this.#schema.types[ref];
    if (type === undefined) throw new TypeError(`The schema has no type ${ref}`);
    const known = this.#named.get(ref);
    if (known !== undefined) return known;
    const name = this.#fresh(ref);
    if ('enum' in type) {
      const members = type.enum.map((value) => ({ name: value }));
      this.#out.push({ name, 'meta-type': 'enum', members, values: type.enum });
    } else if ('struct' in type) {
      this.#out.push({ name, 'meta-type': 'object', members: this.#list(type.struct) });
    } else {
      const { base, discriminator, variants } = type.union;
      this.#out.push({
        name,
        'meta-type': 'object',
        members: this.#list(base),
        tag: discriminator,
        variants: Object.entries(variants).map(([value, variant]) => ({ case: value, type: this.#type(variant) })),
      });
    }
    return name;
  }

  #members(members: QmpMembers): string {
    if (Object.keys(members).length > 0) {
      const name = String(this.#next++);
      this.#out.push({ name, 'meta-type': 'object', members: this.#list(members) });
      return name;
    }
    return this.#once('empty', String(this.#next), (name) => {
      this.#next++;
      return { name, 'meta-type': 'object', members: [] };
    });
  }

  #list(members: QmpMembers): { name: string; type: string; default?: null }[] {
    return Object.entries(members).map(([key, ref]) => {
      const type = this.#type(ref);
      // `default: null` says only that the member may be left out.
      return key.startsWith('*') ? { name: key.slice(1), default: null, type } : { name: key, type };
    });
  }

  #builtin(name: string, jsonType: string): string {
    return this.#once(name, name, () => ({ name, 'meta-type': 'builtin', 'json-type': jsonType }));
  }

  #once(key: string, name: string, make: (name: string) => SchemaInfo): string {
    const known = this.#named.get(`:${key}`);
    if (known !== undefined) return known;
    this.#named.set(`:${key}`, name);
    this.#out.push(make(name));
    return name;
  }

  #fresh(ref: string): string {
    const name = String(this.#next++);
    this.#named.set(ref, name);
    return name;
  }
}
