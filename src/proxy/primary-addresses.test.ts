import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  frameBytes,
  GUEST_IP6,
  GUEST_MAC,
  neighbourFrame,
  type TestFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf, RecordingOutput } from '../../test/support/recording-output.ts';
import { fromSvm, primarySeq, SecondaryWorld } from '../../test/support/secondary-world.ts';
import type { LinkMessage } from '../env/messages.ts';
import { isLinkControl } from './link-control.ts';
import { AddressReport } from './primary-addresses.ts';

/** What the primary tells after its guest has sent these frames. */
function told(report: AddressReport, ...frames: TestFrame[]): LinkMessage[] {
  for (const frame of frames) {
    const info = infoOf(frame);
    report.onGuestFrame(info, isLinkControl(info));
  }
  const out = new RecordingOutput();
  report.tell(out);
  return out.takeMessages();
}

const ARP_OF_GUEST = arpFrame({ senderMac: GUEST_MAC, senderIp: '10.0.0.2' });
const DATAGRAM_OF_GUEST = udpFrame();

describe('AddressReport', () => {
  it('tells addresses once, and again when there is a new one or a new secondary', () => {
    const report = new AddressReport();
    const first = told(report, DATAGRAM_OF_GUEST, ARP_OF_GUEST);
    expect(first).toMatchObject([{ type: 'guest-addresses', addresses: [{ certain: true }] }]);
    expect(told(report, DATAGRAM_OF_GUEST, ARP_OF_GUEST)).toEqual([]);
    const more = told(report, neighbourFrame({ srcMac: GUEST_MAC, src: GUEST_IP6 }));
    expect(more).toMatchObject([{ addresses: [{ ipVersion: 4 }, { ipVersion: 6 }] }]);
    report.onPeerUp();
    expect(told(report)).toEqual(more);
  });
});

describe("the primary's word at a failover", () => {
  const message = told(new AddressReport(), ARP_OF_GUEST)[0]!;

  it('is announced although the SVM has sent nothing', () => {
    const w = new SecondaryWorld().protect();
    w.engine.onPeerMessage(message, w.nowUs);
    const announced = w.failover().map((frame) => [...frameBytes(frame).slice(28, 32)]);
    // Both forms of gratuitous ARP, of the sender 10.0.0.2.
    expect(announced).toEqual([
      [10, 0, 0, 2],
      [10, 0, 0, 2],
    ]);
  });

  it('does not replace what the SVM has stated itself by what is only likely', () => {
    const w = new SecondaryWorld().protect();
    w.svm(ARP_OF_GUEST);
    if (message.type !== 'guest-addresses') throw new Error('addresses are told');
    const { addresses } = message;
    const other = addresses.map((a) => ({ ...a, certain: false, mac: new Uint8Array(6).fill(4) }));
    w.engine.onPeerMessage({ ...message, addresses: other }, w.nowUs);
    const senders = w.failover().map((frame) => [...frameBytes(frame).slice(22, 28)]);
    const own = [...frameBytes(ARP_OF_GUEST).slice(22, 28)];
    expect(senders).toEqual([own, own]);
  });

  it('is not taken where an address cannot be one', () => {
    const w = new SecondaryWorld().protect();
    const base = { ipVersion: 4, vlan: 0, certain: true };
    const ip = Uint8Array.of(10, 0, 0, 9);
    const addresses = [
      { ...base, ip: Uint8Array.of(224, 0, 0, 1), mac: new Uint8Array(6) },
      { ...base, ip, mac: Uint8Array.of(1, 0, 0, 0, 0, 0) },
    ];
    w.engine.onPeerMessage({ type: 'guest-addresses', isRouter: false, addresses }, w.nowUs);
    expect(w.counter('guestAddresses')).toBe(0);
  });
});

describe('a commit of an aborted checkpoint', () => {
  it('that was on its way changes nothing, nor is it answered; the next one counts', () => {
    const w = new SecondaryWorld().protect().open();
    const { epoch } = w.engine;
    w.begin(epoch + 1);
    expect(w.engine.checkpointAbort('the copy is gone', w.nowUs).ok).toBe(true);
    w.out.takeMessages();
    w.commit(epoch + 1);
    expect(w.out.takeMessages()).toEqual([]);
    expect([w.engine.epoch, w.dropped('commit-after-abort')]).toEqual([epoch, 1]);
    expect(infoOf(w.svm(fromSvm(0, 'x'))[0]!).seq).toBe(primarySeq(0));
    w.begin(epoch + 2);
    w.commit(epoch + 2);
    expect(w.out.takeMessages().map(({ type }) => type)).toEqual([
      'checkpoint-began',
      'checkpoint-committed',
    ]);
  });
});
