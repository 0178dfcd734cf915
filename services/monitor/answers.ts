import { QMP_SCHEMA, type QmpReturn } from '../../protocols/qmp/mod.ts';

// From what roles tell to what the schema promises. Roles may be taken over: nothing else than these fields,
// in these types, reaches a client.

type Fields = Readonly<Record<string, unknown>>;

function fieldsOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}

function textOf(value: unknown, otherwise: string): string {
  return typeof value === 'string' ? value.slice(0, 4096) : otherwise;
}

function integerOf(value: unknown, otherwise: number): number {
  if (typeof value === 'bigint') return Number(value);
  return typeof value === 'number' && Number.isSafeInteger(value) ? value : otherwise;
}

export function describeStatus(value: unknown): QmpReturn<'query-status'> {
  const { status, running } = fieldsOf(value);
  const known = QMP_SCHEMA.types.RunState.enum.find((name) => name === status) ?? 'internal-error';
  return { running: running === true, singlestep: false, status: known };
}

export function describeCpu(value: unknown, position: number): QmpReturn<'query-cpus-fast'>[number] {
  const index = integerOf(fieldsOf(value)['cpu-index'], position);
  return {
    'cpu-index': index,
    'qom-path': `/machine/soc0/harts[${index}]`,
    'thread-id': integerOf(fieldsOf(value).threadId, 0),
    props: { 'core-id': index },
    target: 'riscv64',
  };
}

export function describeBlock(value: unknown): QmpReturn<'query-block'>[number] {
  const { id, file, format, readOnly, device, image } = fieldsOf(value);
  const name = textOf(id, '');
  const path = textOf(file, '');
  const driver = textOf(format, 'raw');
  return {
    device: name,
    qdev: textOf(fieldsOf(device).qdev, `/machine/peripheral/${name}/virtio-backend`),
    type: 'unknown',
    removable: false,
    locked: false,
    inserted: {
      file: path,
      'node-name': name,
      ro: readOnly === true,
      drv: driver,
      encrypted: false,
      image: { filename: path, format: driver, 'virtual-size': integerOf(fieldsOf(image).sizeBytes, 0) },
    },
  };
}

export function describeVnc(value: unknown): QmpReturn<'query-vnc'> {
  const { enabled, host, service, family, websocket, clients } = fieldsOf(value);
  if (enabled !== true) return { enabled: false };
  return {
    enabled: true,
    host: textOf(host, ''),
    service: textOf(service, ''),
    family: familyOf(family),
    auth: websocket === true ? 'none' : textOf(fieldsOf(value).auth, 'none'),
    clients: (Array.isArray(clients) ? clients : []).slice(0, 64).map((client) => ({
      host: textOf(fieldsOf(client).host, ''),
      service: textOf(fieldsOf(client).service, ''),
      family: familyOf(fieldsOf(client).family),
      websocket: fieldsOf(client).websocket === true,
    })),
  };
}

function familyOf(value: unknown): 'ipv4' | 'ipv6' | 'unix' | 'unknown' {
  return QMP_SCHEMA.types.NetworkAddressFamily.enum.find((name) => name === value) ?? 'unknown';
}
