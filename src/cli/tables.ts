/**
 * Answers of a node as people read them.
 *
 * @module
 */
import type { FlowStatus } from '../env/engine.ts';
import type { NodeStatus } from './node.ts';

const VALUE_LENGTH_MAX = 48;

/** Left-aligned columns, two spaces apart; numbers to the right. */
export function formatTable(rows: readonly (readonly (string | number)[])[]): string {
  const columns = Math.max(0, ...rows.map((row) => row.length));
  const widths = Array.from({ length: columns }, (_, column) =>
    Math.max(...rows.map((row) => String(row[column] ?? '').length)),
  );
  const lines = rows.map((row) =>
    row
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return typeof cell === 'number' ? String(cell).padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd(),
  );
  return lines.map((line) => `${line}\n`).join('');
}

/** `ctl status`. */
export function formatStatus(status: NodeStatus): string {
  const { peer, link, held, latencyUs, checkpoints } = status;
  const peerText = peer.connected
    ? `${peer.remote}, round trip ${formatUs(peer.rttUs)}, ${link.security}`
    : `not connected (${peer.lastDownReason})`;
  const rows: string[][] = [
    [status.role, `${status.state}: ${clean(status.reason)}`],
    ['epoch', String(status.epoch)],
    ['peer', clean(peerText)],
    ['flows', String(status.flows)],
    ['held', `${held.frames} frames, ${formatBytes(held.bytes)}`],
    ['hold time', formatLatency(latencyUs)],
    ['released', `${status.released} frames, ${status.compared} of them compared`],
    ['divergences', String(status.divergences)],
    ['checkpoints', `${checkpoints.requested} requested, ${checkpoints.committed} committed`],
    ['vm', describeRecord(status.vm)],
  ];
  if (status.role === 'secondary')
    rows.push(['may take over', status.failoverReady ? 'yes' : 'no']);
  const { process } = status;
  const up = formatUs(process.uptimeUs);
  rows.push(['process', `${process.pid}, version ${process.version}, up ${up}`]);
  return [
    formatTable(rows),
    formatPorts(status),
    formatCounters('DROPPED', status.dropped),
    formatCounters('LINK DROPPED', link.dropped),
    formatCounters('LINK REFUSED', link.refused),
    formatCounters('COUNTERS', status.counters),
  ]
    .filter((part) => part !== '')
    .join('\n');
}

function formatPorts({ ports }: NodeStatus): string {
  const rows: (string | number)[][] = [['PORT', 'NAME', 'RECEIVED', 'SENT', 'DROPPED']];
  for (const [place, port] of Object.entries(ports)) {
    const dropped = Object.values(port.dropped).reduce((sum, count) => sum + count, 0);
    rows.push([place, port.name, port.receivedFrames, port.sentFrames, dropped]);
  }
  return formatTable(rows);
}

function formatCounters(title: string, counters: Record<string, number>): string {
  const entries = Object.entries(counters).filter(([, count]) => count > 0);
  return entries.length === 0 ? '' : formatTable([[title, ''], ...entries]);
}

/** `ctl flows`. */
export function formatFlows(flows: readonly FlowStatus[]): string {
  const rows: (string | number)[][] = [['FLOW', 'STATE', 'HELD FRAMES', 'HELD BYTES', 'DETAIL']];
  for (const { flow, tcpState, heldFrames, heldBytes, detail } of flows) {
    rows.push([flow, tcpState, heldFrames, heldBytes, describeRecord(detail)]);
  }
  return formatTable(rows);
}

/** One event as a line. */
export function formatEvent(event: Record<string, unknown>): string {
  const { number, at, kind, text, fields } = event;
  const details = describeRecord((fields ?? {}) as Record<string, unknown>);
  const tail = details === '' ? '' : `  (${details})`;
  return clean(`${String(number).padStart(5)}  ${at}  ${String(kind).padEnd(21)}  ${text}${tail}`)
    .trimEnd()
    .concat('\n');
}

function describeRecord(record: Record<string, unknown>): string {
  return Object.entries(record)
    .filter(([, value]) => value !== '')
    .map(([name, value]) => `${name}=${shorten(String(value))}`)
    .join(' ');
}

/** Commands and excerpts may be long; `--json` has them whole. */
function shorten(text: string): string {
  return text.length <= VALUE_LENGTH_MAX ? text : `${text.slice(0, VALUE_LENGTH_MAX - 3)}...`;
}

function formatLatency({ p50, p99, max }: NodeStatus['latencyUs']): string {
  return `p50 ${formatUs(p50)}, p99 ${formatUs(p99)}, max ${formatUs(max)}`;
}

/** Microseconds in the unit that reads best. */
export function formatUs(us: number): string {
  if (us < 1_000) return `${us} us`;
  if (us < 1_000_000) return `${(us / 1_000).toFixed(1)} ms`;
  if (us < 120_000_000) return `${(us / 1_000_000).toFixed(1)} s`;
  const minutes = Math.floor(us / 60_000_000);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Bytes with a binary unit. */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1_024 && unit < units.length - 1) {
    value /= 1_024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** Texts of peers and VM layers must not bring escapes to a terminal. */
function clean(text: string): string {
  return text.replace(/\p{Cc}/gu, '?');
}
