/** The parsers against frames of real Linux hosts, and whole conversations through flow table, states and reassembly. */
import { describe, expect, it } from 'vitest';
import { GOLDEN_FRAMES } from '../../test/golden/frames.ts';
import { dissectFrame, rawFrame } from '../../test/support/frame-builder.ts';
import { fromHex } from './bytes.ts';
import { checksumAdd, checksumFold, isTransportChecksumRight } from './checksum.ts';
import { findNeighbourMac, isNeighbourMessage, ND_OPTION_TARGET_MAC } from './icmpv6.ts';
import { printFrame } from './print.ts';
import { parseTcpOptions, TcpOptions } from './tcp-options.ts';

type Name = keyof typeof GOLDEN_FRAMES;
const frameOf = (name: Name) => rawFrame(fromHex(GOLDEN_FRAMES[name].hex));
const print = (name: Name) => {
  const { buffer, offset, length } = frameOf(name);
  return printFrame(buffer, offset, length);
};

describe('frames of Linux hosts', () => {
  it('all have the checksums that their sender computed', () => {
    for (const name of Object.keys(GOLDEN_FRAMES) as Name[]) {
      const info = dissectFrame(frameOf(name));
      if (info.ipVersion === 4) {
        const sum = checksumAdd(info.view, info.l3Offset, 20);
        expect([name, checksumFold(sum)]).toEqual([name, 0xffff]);
      }
      if (info.ipVersion !== 0 && !info.isFragment) {
        expect([name, isTransportChecksumRight(info)]).toEqual([name, true]);
      }
    }
  });

  it.each<[Name, string]>([
    ['arpRequest', 'arp who-has 10.0.0.2 tell 10.0.0.9'],
    ['arpReply', 'arp reply 10.0.0.2 is-at 02:00:00:00:00:02'],
    [
      'tcp4Syn',
      '10.0.0.9.51468 > 10.0.0.2.80: tcp S seq 2476434536 win 64240 [mss 1460, wscale 10, sackOK, TS val 4057208059 ecr 0] length 0',
    ],
    [
      'tcp6ClientData',
      '2001:db8::9.42082 > 2001:db8::2.80: tcp PA seq 1559352232:1559352237 ack 2245071935 win 64 [TS val 1587883831 ecr 501748166] length 5',
    ],
    ['udp4Query', '10.0.0.9.52535 > 10.0.0.2.53: udp length 5'],
    [
      'udp4Fragment1',
      '10.0.0.9.52535 > 10.0.0.2.53: frag id 33864 offset 0+, ip-proto-17, length 1480',
    ],
    [
      'udp6Fragment2',
      '2001:db8::9 > 2001:db8::2: frag id 2406201597 offset 1448, ip-proto-17, length 560',
    ],
    ['icmp4PortUnreachable', '10.0.0.2 > 10.0.0.9: icmp type 3 code 3 length 37'],
    ['icmp6PortUnreachable', '2001:db8::2 > 2001:db8::9: icmp6 type 1 code 4 length 57'],
    [
      'nd6Solicitation',
      '2001:db8::9 > ff02::1:ff00:2: icmp6 neighbour solicitation who-has 2001:db8::2',
    ],
    ['mld6GuestReport', ':: > ff02::16: icmp6 type 143 code 0 length 28'],
  ])('%s prints as it should', (name, line) => {
    expect(print(name)).toBe(line);
  });

  it('the SYN-ACK binds the options that a Linux host offers', () => {
    const info = dissectFrame(frameOf('tcp4SynAck'));
    const options = new TcpOptions();
    parseTcpOptions(info.view, info.l4Offset + 20, info.payloadOffset, options);
    expect([options.mss, options.windowScale, options.sackPermitted, options.tsecr]).toEqual([
      1460,
      10,
      true,
      4_057_208_059,
    ]);
  });

  it('the neighbour advertisement names its MAC', () => {
    const info = dissectFrame(frameOf('nd6Advertisement'));
    expect(isNeighbourMessage(info)).toBe(true);
    const at = findNeighbourMac(info, ND_OPTION_TARGET_MAC);
    expect([...info.bytes.slice(at, at + 6)]).toEqual([2, 0, 0, 0, 0, 2]);
  });
});
