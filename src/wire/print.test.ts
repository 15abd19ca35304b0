import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  fragmentFrame,
  icmpEcho,
  neighbourFrame,
  rawFrame,
  rawIpFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { fromHex } from './bytes.ts';
import { printFrame } from './print.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH, TCP_SYN } from './tcp.ts';

const print = ({ buffer, offset, length }: TestFrame) => printFrame(buffer, offset, length);
const SIX = { src: '2001:db8::2', dst: '2001:db8::9' };

describe('printFrame()', () => {
  it.each([
    [
      tcpFrame({
        seq: 2 ** 32 - 1,
        flags: TCP_SYN | TCP_ACK,
        ack: 7,
        options: {
          mss: 1460,
          windowScale: 7,
          sackPermitted: true,
          timestamps: { tsval: 1, tsecr: 2 },
        },
      }),
      '10.0.0.2.80 > 10.0.0.9.40312: tcp SA seq 4294967295 ack 7 win 65535 [mss 1460, wscale 7, sackOK, TS val 1 ecr 2] length 0',
    ],
    [
      tcpFrame({ ...SIX, seq: 2 ** 32 - 2, flags: TCP_PSH | TCP_ACK | TCP_FIN, payload: 'hello' }),
      '2001:db8::2.80 > 2001:db8::9.40312: tcp FPA seq 4294967294:3 ack 0 win 65535 length 5',
    ],
    [
      tcpFrame({ ack: 9, options: { sack: [[5, 7]] } }),
      '10.0.0.2.80 > 10.0.0.9.40312: tcp A ack 9 win 65535 [sack 5:7] length 0',
    ],
    [
      udpFrame({ vlan: 7 * 4096 + 5, payload: 'abc' }),
      'vlan 7.5, 10.0.0.2.53 > 10.0.0.9.40312: udp length 3',
    ],
    [
      icmpEcho({ identifier: 3, sequence: 4, isReply: true, payload: 'x' }),
      '10.0.0.2 > 10.0.0.9: icmp echo reply id 3 seq 4 length 1',
    ],
    [
      neighbourFrame(),
      '2001:db8::2 > ff02::1:ff00:9: icmp6 neighbour solicitation who-has 2001:db8::9',
    ],
    [
      neighbourFrame({ isAdvertisement: true }),
      '2001:db8::2 > 2001:db8::9: icmp6 neighbour advertisement of 2001:db8::2',
    ],
    [rawIpFrame(47, { payload: 'x' }), '10.0.0.2 > 10.0.0.9: ip-proto-47 length 1'],
    [arpFrame({ vlan: 5 }), 'vlan 5, arp who-has 10.0.0.9 tell 10.0.0.2'],
    [arpFrame({ isReply: true }), 'arp reply 10.0.0.2 is-at 02:00:00:00:00:02'],
    [
      fragmentFrame(udpFrame({ payload: 'x'.repeat(40) }), 32, 77)[1]!,
      '10.0.0.2 > 10.0.0.9: frag id 77 offset 32, ip-proto-17, length 16',
    ],
    [
      rawFrame(fromHex('020000000009 020000000002 88cc 00')),
      '02:00:00:00:00:02 > 02:00:00:00:00:09: ethertype 0x88cc, length 15',
    ],
    [rawFrame(fromHex('00')), 'malformed (ethernet-truncated), length 1'],
  ] as const)('%#: one line each', (frame, line) => expect(print(frame)).toBe(line));

  it('gives a line for any bytes', () => {
    const head = fc
      .constantFrom('0800', '86dd', '0806', '8100')
      .map((type) => `${'02'.repeat(12)}${type}`);
    const start = fc.constantFrom('', '45000030000000004001', '6000000000203aff');
    fc.assert(
      fc.property(head, start, fc.uint8Array({ maxLength: 80 }), (ethernet, ip, rest) => {
        const bytes = Uint8Array.of(...fromHex(ethernet + ip), ...rest);
        expect(print(rawFrame(bytes))).toMatch(/^[ -~]+$/);
      }),
    );
  });
});
