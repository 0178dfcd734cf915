import type { QMP_SCHEMA } from './schema.ts';

/** The name of a type, or a list of them */
export type QmpTypeRef = string | readonly [string];
export interface QmpMembers {
  readonly [name: string]: QmpTypeRef;
}
export interface QmpUnion {
  readonly base: QmpMembers;
  readonly discriminator: string;
  /** By the discriminator's value: the struct whose members come beside the base */
  readonly variants: { readonly [value: string]: string };
}
export type QmpType =
  | { readonly struct: QmpMembers }
  | { readonly enum: readonly string[] }
  | { readonly union: QmpUnion };
export interface QmpCommand {
  /** Members, or the name of a struct or union */
  readonly arguments?: QmpMembers | string;
  readonly returns?: QmpTypeRef;
}
export interface QmpSchema {
  readonly types: { readonly [name: string]: QmpType };
  readonly commands: { readonly [name: string]: QmpCommand };
  readonly events: { readonly [name: string]: QmpMembers };
}

type Types = typeof QMP_SCHEMA.types;
type Commands = typeof QMP_SCHEMA.commands;
type Events = typeof QMP_SCHEMA.events;

/** Built-in types; integers differ in their range only. */
interface Primitives {
  str: string;
  int: number;
  size: number;
  uint8: number;
  uint16: number;
  uint32: number;
  number: number;
  bool: boolean;
  any: unknown;
}
type Flat<T> = { [K in keyof T]: T[K] };
type FromRef<R> = R extends readonly [infer Item]
  ? FromRef<Item>[]
  : R extends keyof Primitives
    ? Primitives[R]
    : R extends keyof Types
      ? FromType<Types[R]>
      : never;
type FromMembers<M> = Flat<
  { [K in keyof M as K extends `*${string}` ? never : K]: FromRef<M[K]> } & {
    [K in keyof M as K extends `*${infer Name}` ? Name : never]?: FromRef<M[K]>;
  }
>;
type FromType<T> = T extends { struct: infer M }
  ? FromMembers<M>
  : T extends { enum: readonly (infer V)[] }
    ? V
    : T extends { union: { base: infer B; discriminator: infer D extends string; variants: infer V } }
      ? { [K in keyof V]: Flat<Omit<FromMembers<B>, D> & { [_ in D]: K } & FromRef<V[K]>> }[keyof V]
      : never;

export type QmpCommandName = keyof Commands;
export type QmpEventName = keyof Events;
/** Arguments after validation: shape and ranges are those of the schema */
export type QmpArguments<N extends QmpCommandName> = Commands[N] extends { arguments: infer A }
  ? A extends string
    ? FromRef<A>
    : FromMembers<A>
  : Record<string, never>;
export type QmpReturn<N extends QmpCommandName> = Commands[N] extends { returns: infer R }
  ? FromRef<R>
  : Record<string, never>;
export type QmpEventData<N extends QmpEventName> = FromMembers<Events[N]>;
