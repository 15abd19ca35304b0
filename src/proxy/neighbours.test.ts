import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  CLIENT_IP,
  CLIENT_IP6,
  CLIENT_MAC,
  frameBytes,
  GUEST_IP,
  GUEST_IP6,
  GUEST_MAC,
  neighbourFrame,
  rawIpFrame,
  type TestFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf } from '../../test/support/recording-output.ts';
import { SecondaryWorld } from '../../test/support/secondary-world.ts';
import { NEIGHBOURS_MAX } from '../limits.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';

/** What a question of the SVM makes the engine give to it. */
function ask(w: SecondaryWorld, question: TestFrame): TestFrame[] {
  expect(w.svm(question)).toHaveLength(0);
  return w.takeGuest();
}

/** A client's IP frame to the guest. */
function fromHost(src: string, dst: string, srcMac = CLIENT_MAC, vlan = 0): TestFrame {
  return udpFrame({ src, dst, srcMac, dstMac: GUEST_MAC, vlan });
}

function flagsOf(frame: TestFrame): number {
  const info = infoOf(frame);
  expect(isTransportChecksumRight(info)).toBe(true);
  return info.bytes[info.l4Offset + 4]!;
}

const toGuest = { isReply: true, targetMac: GUEST_MAC, targetIp: GUEST_IP };

describe('Neighbours, ARP', () => {
  it('answers from what a client stated, exactly as the client would', () => {
    const w = new SecondaryWorld().protect();
    w.client(arpFrame({ senderMac: CLIENT_MAC, senderIp: CLIENT_IP, targetIp: GUEST_IP }));
    const answer = arpFrame({ ...toGuest, senderMac: CLIENT_MAC, senderIp: CLIENT_IP });
    expect(ask(w, arpFrame()).map(frameBytes)).toEqual([frameBytes(answer)]);
    expect(w.counter('neighboursAnswered')).toBe(1);
  });

  it('answers from the source of IP frames', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromHost(CLIENT_IP, GUEST_IP));
    expect(ask(w, arpFrame())).toHaveLength(1);
  });

  it('does not learn from a frame whose source address was not known', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromHost(CLIENT_IP, GUEST_IP, '00:00:00:00:00:00'));
    expect(ask(w, arpFrame())).toHaveLength(0);
  });

  it('believes ARP rather than IP frames, which routers send for others', () => {
    const w = new SecondaryWorld().protect();
    w.client(arpFrame({ senderMac: CLIENT_MAC, senderIp: CLIENT_IP, targetIp: GUEST_IP }));
    w.client(fromHost(CLIENT_IP, GUEST_IP, '02:00:00:00:00:fe'));
    const [answer] = ask(w, arpFrame());
    expect([...frameBytes(answer!).slice(6, 12)]).toEqual([2, 0, 0, 0, 0, 9]);
  });

  it('keeps VLANs apart, and answers in the one of the question', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromHost(CLIENT_IP, GUEST_IP, CLIENT_MAC, 5));
    expect(ask(w, arpFrame())).toHaveLength(0);
    const [answer] = ask(w, arpFrame({ vlan: 5 }));
    const expected = arpFrame({ ...toGuest, senderMac: CLIENT_MAC, senderIp: CLIENT_IP, vlan: 5 });
    expect(frameBytes(answer!)).toEqual(frameBytes(expected));
  });

  it('answers late, when it learns; once', () => {
    const w = new SecondaryWorld().protect();
    expect(ask(w, arpFrame())).toHaveLength(0);
    const [answer, frame] = w.client(fromHost(CLIENT_IP, GUEST_IP));
    expect(infoOf(answer!).etherType).toBe(0x0806);
    expect(infoOf(frame!).protocol).toBe(17);
    expect(w.client(fromHost(CLIENT_IP, GUEST_IP))).toHaveLength(1);
  });

  it('learns and answers while syncing too', () => {
    const w = new SecondaryWorld();
    w.engine.onPeerUp(0, w.nowUs);
    w.client(fromHost(CLIENT_IP, GUEST_IP));
    expect(ask(w, arpFrame())).toHaveLength(1);
  });

  it('is silent to probes, announcements, and questions for the guest itself', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromHost(CLIENT_IP, GUEST_IP));
    // A probe for an address that a neighbour has: silence says that the guest may keep what the PVM keeps.
    expect(ask(w, arpFrame({ senderIp: '0.0.0.0' }))).toHaveLength(0);
    expect(ask(w, arpFrame({ senderIp: GUEST_IP, targetIp: GUEST_IP }))).toHaveLength(0);
    ask(w, arpFrame({ senderIp: '10.0.0.3', targetIp: '10.0.0.200' }));
    expect(ask(w, arpFrame({ senderIp: GUEST_IP, targetIp: '10.0.0.3' }))).toHaveLength(0);
    expect(
      ask(w, arpFrame({ isReply: true, senderMac: GUEST_MAC, senderIp: GUEST_IP })),
    ).toHaveLength(0);
  });

  it('does not take the address of the guest for that of a neighbour', () => {
    const w = new SecondaryWorld().protect();
    ask(w, arpFrame({ targetIp: '10.0.0.200' }));
    w.client(arpFrame({ senderMac: CLIENT_MAC, senderIp: GUEST_IP, targetIp: GUEST_IP }));
    ask(w, arpFrame({ senderIp: '10.0.0.3', targetIp: '10.0.0.201' }));
    expect(w.counter('neighbours')).toBe(0);
  });

  it('is bounded in neighbours and in questions', () => {
    const w = new SecondaryWorld().protect();
    for (let i = 0; i < 2 * NEIGHBOURS_MAX; i++) {
      const host = `10.1.${i >> 8}.${i & 255}`;
      w.client(arpFrame({ senderMac: CLIENT_MAC, senderIp: host, targetIp: GUEST_IP }));
      w.client(fromHost(`10.2.${i >> 8}.${i & 255}`, GUEST_IP));
    }
    expect(w.counter('neighbours')).toBe(NEIGHBOURS_MAX);
    for (let i = 0; i < 100; i++) ask(w, arpFrame({ targetIp: `10.3.0.${i}` }));
    // The oldest questions are forgotten, the youngest are answered.
    expect(w.client(fromHost('10.3.0.1', GUEST_IP))).toHaveLength(1);
    expect(w.client(fromHost('10.3.0.99', GUEST_IP))).toHaveLength(2);
  });

  it('answers a question although the short way of IP frames knows the sender', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromHost(CLIENT_IP, GUEST_IP));
    for (let i = 0; i < NEIGHBOURS_MAX; i++)
      w.client(fromHost(`10.2.${i >> 8}.${i & 255}`, GUEST_IP));
    expect(ask(w, arpFrame())).toHaveLength(0);
    expect(w.client(fromHost(CLIENT_IP, GUEST_IP))).toHaveLength(2);
  });
});

describe('Neighbours, IPv6', () => {
  const advertisement = {
    isAdvertisement: true,
    srcMac: CLIENT_MAC,
    src: CLIENT_IP6,
    dst: GUEST_IP6,
    dstMac: GUEST_MAC,
  };

  it('answers a solicitation from an advertisement that a client sent', () => {
    const w = new SecondaryWorld().protect();
    w.client(neighbourFrame(advertisement));
    expect(ask(w, neighbourFrame()).map(frameBytes)).toEqual([
      frameBytes(neighbourFrame(advertisement)),
    ]);
  });

  it('answers from the source of a solicitation and of IP frames; with the router flag when it knows no better', () => {
    const w = new SecondaryWorld().protect();
    w.client(neighbourFrame({ srcMac: CLIENT_MAC, src: CLIENT_IP6, target: GUEST_IP6 }));
    const [answer] = ask(w, neighbourFrame());
    expect(flagsOf(answer!)).toBe(0xe0);
    w.client(fromHost('fe80::7', GUEST_IP6));
    expect(ask(w, neighbourFrame({ target: 'fe80::7' }))).toHaveLength(1);
  });

  it('knows a router by its advertisement', () => {
    const w = new SecondaryWorld().protect();
    const advertise = new Uint8Array(16);
    advertise[0] = 134;
    w.client(
      rawIpFrame(58, {
        src: 'fe80::1',
        dst: 'ff02::1',
        srcMac: CLIENT_MAC,
        ttl: 255,
        payload: advertise,
      }),
    );
    const [answer] = ask(w, neighbourFrame({ target: 'fe80::1' }));
    expect(flagsOf(answer!)).toBe(0xe0);
  });

  it('is silent to duplicate address detection', () => {
    const w = new SecondaryWorld().protect();
    w.client(neighbourFrame(advertisement));
    expect(ask(w, neighbourFrame({ src: '::', target: CLIENT_IP6 }))).toHaveLength(0);
    expect(ask(w, neighbourFrame({ target: GUEST_IP6 }))).toHaveLength(0);
  });

  it('does not learn from a message that a router forwarded', () => {
    const w = new SecondaryWorld().protect();
    const frame = neighbourFrame({ ...advertisement, src: '2001:db8::66' });
    const info = infoOf(frame);
    info.bytes[info.l3Offset + 7] = 254;
    w.client(frame);
    // Its IP source is still taken as a suggestion; the forged target MAC is not stated.
    expect(w.counter('neighbours')).toBe(1);
    const target = neighbourFrame({ ...advertisement, src: CLIENT_IP6 });
    const other = infoOf(target);
    other.bytes[other.l3Offset + 7] = 254;
    other.bytes.set([0, 0, 0, 0, 0, 0, 0, 0x55], other.l4Offset + 16);
    w.client(target);
    expect(ask(w, neighbourFrame({ target: '2001:db8::55' }))).toHaveLength(0);
  });
});
