import { QMP_SCHEMA, type QmpArguments, type QmpCall, QmpError, type QmpReturn } from '../../protocols/qmp/mod.ts';

/** What a command about jobs, limits and bitmaps of disks asks of the supervisor: a method and plain parameters. */
export function blockRequest(call: QmpCall): { readonly method: string; readonly params: object } | undefined {
  switch (call.name) {
    case 'drive-mirror':
    case 'drive-backup':
      return start(call.name.slice(6), { format: 'raw', ...call.arguments });
    case 'blockdev-mirror':
    case 'blockdev-backup': {
      const { target, ...rest } = call.arguments;
      return start(call.name.slice(9), { ...rest, node: target });
    }
    case 'block-commit':
    case 'block-stream':
      return start(call.name.slice(6), call.arguments);
    case 'block-job-cancel':
      return control('cancel', call.arguments.device, { force: call.arguments.force ?? false });
    case 'block-job-complete':
    case 'block-job-pause':
    case 'block-job-resume':
      return control(call.name.slice(10), call.arguments.device, {});
    case 'block-job-set-speed':
      return control('set-speed', call.arguments.device, { speed: call.arguments.speed });
    case 'blockdev-add': {
      const { driver, 'node-name': node, file } = call.arguments;
      return { method: 'blockdev-add', params: { node, format: driver, path: file.filename } };
    }
    case 'blockdev-del':
      return { method: 'blockdev-del', params: { node: call.arguments['node-name'] } };
    case 'block_set_io_throttle':
      return { method: 'block-throttle', params: throttleParams(call.arguments) };
    case 'block-dirty-bitmap-add': {
      const { node, ...rest } = call.arguments;
      return bitmap('add', { ...rest, device: node });
    }
    case 'block-dirty-bitmap-remove':
    case 'block-dirty-bitmap-clear':
    case 'block-dirty-bitmap-enable':
    case 'block-dirty-bitmap-disable': {
      const { node, name } = call.arguments;
      return bitmap(call.name.slice(19), { device: node, name });
    }
    case 'block-dirty-bitmap-merge': {
      const { node, target, bitmaps } = call.arguments;
      return bitmap('merge', { device: node, name: target, from: bitmaps });
    }
    default:
      return undefined;
  }
}

/** The disk role may be taken over: nothing else than these fields, in these types, reaches a client. */
export function describeJob(value: unknown): QmpReturn<'query-block-jobs'>[number] {
  const fields = (typeof value === 'object' && value !== null ? value : {}) as Readonly<Record<string, unknown>>;
  const count = (name: string): number => (Number.isSafeInteger(fields[name]) ? (fields[name] as number) : 0);
  const { JobType, JobStatus } = QMP_SCHEMA.types;
  return {
    type: JobType.enum.find((name) => name === fields.type) ?? 'mirror',
    device: typeof fields.device === 'string' ? fields.device.slice(0, 4096) : '',
    len: count('len'),
    offset: count('offset'),
    busy: fields.busy === true,
    paused: fields.paused === true,
    speed: count('speed'),
    'io-status': 'ok',
    ready: fields.ready === true,
    status: JobStatus.enum.find((name) => name === fields.status) ?? 'running',
    'auto-finalize': true,
    'auto-dismiss': true,
  };
}

function start(type: string, given: object) {
  const { 'job-id': job, ...rest } = given as { readonly 'job-id'?: string };
  return { method: 'block-job-start', params: { ...rest, type, ...(job === undefined ? {} : { job }) } };
}

function control(action: string, job: string, more: object) {
  return { method: 'block-job-control', params: { ...more, job, action } };
}

function bitmap(action: string, params: object) {
  return { method: 'block-bitmap', params: { ...params, action } };
}

function throttleParams(given: QmpArguments<'block_set_io_throttle'>): object {
  const device = given.id ?? given.device;
  if (device === undefined) throw new QmpError("Parameter 'id' is missing");
  const rates = [
    ['bytesTotal', given.bps, given.bps_max, given.bps_max_length],
    ['bytesRead', given.bps_rd, given.bps_rd_max, given.bps_rd_max_length],
    ['bytesWrite', given.bps_wr, given.bps_wr_max, given.bps_wr_max_length],
    ['opsTotal', given.iops, given.iops_max, given.iops_max_length],
    ['opsRead', given.iops_rd, given.iops_rd_max, given.iops_rd_max_length],
    ['opsWrite', given.iops_wr, given.iops_wr_max, given.iops_wr_max_length],
  ] as const;
  for (const [total, ...parts] of [
    [given.bps, given.bps_rd, given.bps_wr],
    [given.iops, given.iops_rd, given.iops_wr],
  ] as const) {
    if (total > 0 && parts.some((part) => part > 0)) {
      throw new QmpError('bps/iops/max total values and read/write values cannot be used at the same time');
    }
  }
  const limits: Record<string, object> = {};
  for (const [name, average, burst, burstSeconds] of rates) {
    if (average === 0) continue;
    limits[name] = {
      average,
      ...(burst === undefined || burst === 0 ? {} : { burst }),
      ...(burstSeconds === undefined ? {} : { burstSeconds }),
    };
  }
  return { device, ...limits, ...(given.iops_size === undefined ? {} : { opBytes: given.iops_size }) };
}
