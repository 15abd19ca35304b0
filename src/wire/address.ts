/**
 * Text and byte forms of addresses: MAC, IPv4, IPv6 (RFC 4291 §2.2 in, RFC 5952 out).
 *
 * @module
 */

/** `02:00:00:00:00:01` of the six bytes at `offset`. */
export function formatMac(bytes: Uint8Array, offset: number): string {
  let text = '';
  for (let i = 0; i < 6; i++) {
    if (i > 0) text += ':';
    text += bytes[offset + i]!.toString(16).padStart(2, '0');
  }
  return text;
}

/** `10.0.0.2` of the four bytes at `offset`. */
export function formatIpv4(bytes: Uint8Array, offset: number): string {
  return `${bytes[offset]}.${bytes[offset + 1]}.${bytes[offset + 2]}.${bytes[offset + 3]}`;
}

/**
 * RFC 5952 text of the sixteen bytes at `offset`: lower case, no leading zeros, `::` for the longest run of
 * two or more zero groups (the first of equals), and dotted quad in the IPv4-mapped prefix (§5).
 */
export function formatIpv6(bytes: Uint8Array, offset: number): string {
  const groups: number[] = [];
  for (let i = 0; i < 16; i += 2) groups.push((bytes[offset + i]! << 8) | bytes[offset + i + 1]!);
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (isMapped) return `::ffff:${formatIpv4(bytes, offset + 12)}`;
  let bestStart = -1;
  let bestCount = 1;
  for (let start = 0; start < 8; start++) {
    let count = 0;
    while (start + count < 8 && groups[start + count] === 0) count++;
    if (count > bestCount) {
      bestStart = start;
      bestCount = count;
    }
  }
  const hex = groups.map((group) => group.toString(16));
  if (bestStart < 0) return hex.join(':');
  return `${hex.slice(0, bestStart).join(':')}::${hex.slice(bestStart + bestCount).join(':')}`;
}

/** The address at `offset`, of 4 bytes (`ipVersion` 4) or 16. */
export function formatIp(ipVersion: number, bytes: Uint8Array, offset: number): string {
  return ipVersion === 4 ? formatIpv4(bytes, offset) : formatIpv6(bytes, offset);
}

/** Six bytes, or undefined when the text is no MAC address (`02:00:00:00:00:01`, or with `-`). */
export function parseMac(text: string): Uint8Array | undefined {
  const parts = text.split(/[:-]/);
  if (parts.length !== 6 || !parts.every((part) => /^[0-9a-f]{2}$/i.test(part))) return undefined;
  return Uint8Array.from(parts, (part) => Number.parseInt(part, 16));
}

/** Four bytes, or undefined when the text is no dotted quad (no leading zeros: they read as octal elsewhere). */
export function parseIpv4(text: string): Uint8Array | undefined {
  const parts = text.split('.');
  if (parts.length !== 4) return undefined;
  if (!parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255)) {
    return undefined;
  }
  return Uint8Array.from(parts, Number);
}

/** Sixteen bytes, or undefined when the text is no IPv6 address (no zone, no brackets). */
export function parseIpv6(text: string): Uint8Array | undefined {
  let hex = text;
  const lastColon = text.lastIndexOf(':');
  if (text.includes('.')) {
    const quad = parseIpv4(text.slice(lastColon + 1));
    if (quad === undefined) return undefined;
    const high = ((quad[0]! << 8) | quad[1]!).toString(16);
    const low = ((quad[2]! << 8) | quad[3]!).toString(16);
    hex = `${text.slice(0, lastColon + 1)}${high}:${low}`;
  }
  const halves = hex.split('::');
  if (halves.length > 2) return undefined;
  const [head, tail] = halves.map((half) => (half === '' ? [] : half.split(':')));
  const groups = [...(head ?? []), ...(tail ?? [])];
  if (!groups.every((group) => /^[0-9a-f]{1,4}$/i.test(group))) return undefined;
  // RFC 4291 §2.2: `::` stands for one or more groups.
  if (tail === undefined ? groups.length !== 8 : groups.length > 7) return undefined;
  const bytes = new Uint8Array(16);
  (head ?? []).forEach((group, i) => {
    writeGroup(bytes, i, group);
  });
  (tail ?? []).forEach((group, i) => {
    writeGroup(bytes, 8 - (tail ?? []).length + i, group);
  });
  return bytes;
}

function writeGroup(bytes: Uint8Array, index: number, group: string): void {
  const value = Number.parseInt(group, 16);
  bytes[2 * index] = value >> 8;
  bytes[2 * index + 1] = value & 0xff;
}

/** Four or sixteen bytes, or undefined. */
export function parseIp(text: string): Uint8Array | undefined {
  return text.includes(':') ? parseIpv6(text) : parseIpv4(text);
}
