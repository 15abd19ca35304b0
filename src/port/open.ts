/**
 * PORT strings of the command line and the configuration.
 *
 * ```text
 * packet:IFNAME              frames on an existing interface, through a packet socket
 * tap:IFNAME                 the far side of a tap device, made if need be
 * ```
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { Port } from '../env/port.ts';
import { PacketPort } from './packet.ts';
import { TapPort } from './tap.ts';

/** A PORT string, taken apart. */
export type PortSpec =
  | { readonly kind: 'packet'; readonly interfaceName: string }
  | { readonly kind: 'tap'; readonly interfaceName: string };

const FORMS = 'packet:IFNAME, tap:IFNAME';

/**
 * Takes a PORT string apart; opens nothing.
 *
 * @throws ColoError COLO_ERR_PORT_SPEC
 */
export function parsePortSpec(spec: string): PortSpec {
  const colon = spec.indexOf(':');
  const kind = colon < 0 ? spec : spec.slice(0, colon);
  const rest = colon < 0 ? '' : spec.slice(colon + 1);
  switch (kind) {
    case 'packet':
    case 'tap':
      return { kind, interfaceName: checkInterfaceName(spec, rest) };
    default:
      throw specError(spec, `there is no port kind "${kind}"; one of ${FORMS} is wanted`);
  }
}

/**
 * Opens a port. It is silent until `start`.
 *
 * @throws ColoError COLO_ERR_PORT_SPEC, or that of the port kind (COLO_ERR_PACKET_OPEN, ...)
 */
export function openPort(spec: string): Port {
  const parsed = parsePortSpec(spec);
  switch (parsed.kind) {
    case 'packet':
      return new PacketPort(parsed.interfaceName);
    case 'tap':
      return new TapPort(parsed.interfaceName);
  }
}

/** As the kernel's dev_valid_name: 1..15 bytes, no slash, colon or white space, not `.` or `..`. */
function checkInterfaceName(spec: string, name: string): string {
  if (name === '') throw specError(spec, 'an interface name must follow the colon');
  if (new TextEncoder().encode(name).length > 15) {
    throw specError(spec, 'an interface name has at most 15 bytes');
  }
  if (/[/:\s\0]/.test(name) || name === '.' || name === '..') {
    throw specError(spec, `"${name}" cannot be the name of an interface`);
  }
  return name;
}

function specError(spec: string, reason: string): ColoError {
  return new ColoError('COLO_ERR_PORT_SPEC', `Cannot use the port "${spec}": ${reason}`);
}
