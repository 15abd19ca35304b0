/**
 * Faults in what the primary releases and when, and around checkpoints.
 *
 * @module
 */
import { US_PER_MS, US_PER_S } from '../../base/time.ts';
import { datagramRequest } from '../host/client.ts';
import { FLAG_READ_SLOWLY } from '../host/content.ts';
import { SERVICE_PORT } from '../host/service.ts';
import { PROTOCOL_UDP, parseIp, type SimFrame } from '../net/packet.ts';
import { SYN } from '../tcp/segment.ts';
import { PROTECTED_MS, plan, request, type Scenario, type Stage } from './scenario.ts';

const GAP_FILLER: Scenario = {
  name: 'gap-filler-behind-the-gap',
  about:
    'A segment of the PVM that filled a gap waited behind the one after the gap, which waited for the SVM, which waited for the client: only the lag timeout ended it.',
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(10), request(2_600)], { pauseUs: 50 * US_PER_MS }));
      stage.at(PROTECTED_MS + 30, () => {
        // Of the second answer (two segments) the PVM's first is lost on its way to the node, the SVM's second as well, each once.
        let lostOfPvm = 0;
        stage.onSegment(world.primaryGuest.from, (segment) => {
          if (segment.payload.length < 1_000) return undefined;
          return lostOfPvm++ === 0 ? { isLost: true } : undefined;
        });
        let seenOfSvm = 0;
        stage.onSegment(world.secondaryGuest.from, (segment) => {
          if (segment.payload.length < 1_000) return undefined;
          return ++seenOfSvm === 2 ? { isLost: true } : undefined;
        });
      });
      // Both guests retransmit their first segment after 200 ms, and nothing else before it is acknowledged.
      stage.at(PROTECTED_MS + 300, () => {
        stage.demand(
          'G6',
          session.receivedCount === 2_610,
          `the client has ${session.receivedCount} bytes of 2610, 50 ms after the retransmission`,
        );
      });
    });
  },
  untilMs: PROTECTED_MS + 400,
};

const WINDOW_AT_COMMIT: Scenario = {
  name: 'window-at-a-commit',
  about:
    'A kept ACK of which only the window had been lowered was forgotten by a commit: the client kept the small window until its next probe.',
  options: (calm) => ({
    ...calm,
    config: { ...calm.config, compareTimeoutUs: 50 * US_PER_MS },
    guestTcp: { ...calm.guestTcp, receiveBytesMax: 8_000, windowScale: 0 },
  }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      // The guests read this body 700 bytes at a time: the window closes to less, and opens again.
      const session = stage.open(
        plan([request(10, FLAG_READ_SLOWLY), request(10, 0, 6_000)], { pauseUs: 20 * US_PER_MS }),
      );
      stage.at(PROTECTED_MS + 40, () => {
        // From here on the SVM's word that it has read, too, is lost.
        stage.onSegment(world.secondaryGuest.from, () => ({ isLost: true }));
      });
      stage.at(PROTECTED_MS + 150, () => {
        const { sndUna, sndMax, sndWnd } = session.connection;
        stage.demand('G6', sndUna === sndMax, 'the body is not acknowledged');
        stage.demand('G2', sndWnd < 2_000, `the window is ${sndWnd}, the SVM has offered less`);
        stage.checkpoint();
      });
      stage.at(PROTECTED_MS + 165, () => {
        const { sndWnd } = session.connection;
        stage.demand('G6', sndWnd > 4_000, `the window is ${sndWnd} after the commit`);
      });
    });
  },
  untilMs: PROTECTED_MS + 200,
};

const LATE_OLD_ACK: Scenario = {
  name: 'late-old-ack',
  about: 'An older ACK of the PVM that came late took the place of the newer one that was held.',
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(
        plan([request(10), request(10, 0, 2_800)], { pauseUs: 50 * US_PER_MS }),
      );
      stage.at(PROTECTED_MS + 30, () => {
        // The SVM is 30 ms behind, and the PVM's answer does not come: only its ACKs.
        stage.onSegment(world.secondaryGuest.to, () => ({ lateUs: 30 * US_PER_MS }));
        let isFirst = true;
        stage.onSegment(world.primaryGuest.from, (segment) => {
          if (segment.payload.length > 0) return { isLost: true };
          if (!isFirst) return undefined;
          isFirst = false;
          return { lateUs: 10 * US_PER_MS };
        });
        stage.onSegment(world.secondaryGuest.from, (segment) =>
          segment.payload.length > 0 ? { isLost: true } : undefined,
        );
      });
      stage.at(PROTECTED_MS + 50 + 100, () => {
        const { sndUna, sndMax } = session.connection;
        stage.demand('G6', sndUna === sndMax, `${sndMax - sndUna} bytes are not acknowledged`);
      });
    });
  },
  untilMs: PROTECTED_MS + 200,
};

const ACK_OF_A_REPEAT: Scenario = {
  name: 'ack-of-a-repeat',
  about:
    'A retransmission of the PVM acknowledged more than the SVM, and the ACK that stayed behind was watched by nobody: no checkpoint was asked for, and losing the peer did not release it.',
  options: (calm) => ({ ...calm, guestTcp: { ...calm.guestTcp, delayedAck: true } }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      // The second request arrives while the PVM still delays its ACK: the first answer, repeated after 200 ms, carries it.
      const session = stage.open(
        plan([request(300), request(0, 0, 1_432)], {
          isPipelined: true,
          pauseUs: 190 * US_PER_MS,
        }),
      );
      stage.onSegment(world.clients[0]!.fromSwitch, (segment) =>
        segment.payload.length > 0 ? { isLost: true } : undefined,
      );
      stage.onSegment(world.secondaryGuest.to, (segment) =>
        segment.payload.length > 1_000 ? { isLost: true } : undefined,
      );
      let isHere = false;
      stage.onSegment(world.primaryGuest.to, (segment) => {
        if (isHere) return { isLost: true };
        isHere = segment.payload.length > 1_000;
        return undefined;
      });
      // The SVM repeats its answer, too: any of its segments makes the primary look at the connection.
      stage.onSegment(world.secondaryGuest.from, () => (isHere ? { isLost: true } : undefined));
      stage.at(PROTECTED_MS + 195, () => {
        const { sndMax } = session.connection;
        stage.demand('G6', isHere && sndMax > 1_400, 'the second request was not sent');
      });
      stage.at(PROTECTED_MS + 450, () => {
        const { sndUna, sndMax } = session.connection;
        stage.demand('G6', sndUna === sndMax, `${sndMax - sndUna} bytes are not acknowledged`);
      });
    });
  },
  untilMs: PROTECTED_MS + 500,
};

const WINDOW_OF_A_SYN: Scenario = {
  name: 'window-of-a-forgotten-syn',
  about:
    "A full table forgot a connection in its handshake, and then saw the SVM's SYN-ACK again: its window, which is never scaled, was taken for a scaled one, and the client was offered more than the SVM had offered.",
  options: (calm) => ({
    ...calm,
    config: { ...calm.config, halfOpenFlowsMax: 1 },
    guestTcp: { ...calm.guestTcp, receiveBytesMax: 300_000 },
  }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const { localPort } = stage.open(plan([request(10)])).connection;
      // The client's ACK is late, and comes when another handshake has taken the place in the table; the SVM does not get it.
      stage.onSegment(world.clients[0]!.toSwitch, (segment) =>
        segment.srcPort === localPort && (segment.flags & SYN) === 0
          ? { lateUs: 20 * US_PER_MS }
          : undefined,
      );
      let syn: SimFrame | undefined;
      stage.onSegment(world.secondaryGuest.to, (segment, frame) => {
        if (segment.srcPort !== localPort) return undefined;
        if ((segment.flags & SYN) === 0) return { isLost: true };
        syn = frame;
        return undefined;
      });
      stage.at(PROTECTED_MS + 10, () => stage.open(plan([request(10)])));
      // A duplicate of the client's SYN makes the SVM answer it again.
      stage.at(PROTECTED_MS + 30, () => {
        stage.demand('G6', syn !== undefined, 'the SVM has not seen the SYN');
        world.secondaryGuest.to.send(syn!);
      });
    });
  },
  untilMs: PROTECTED_MS + 200,
};

const SYN_BIT: Scenario = {
  name: 'syn-bit-in-the-middle',
  about:
    "One flipped bit made a SYN of a client's data segment, and the primary took from it that the connection does not scale its windows: the client was offered windows beyond what the guests had offered.",
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      stage.open(
        plan([request(10), request(10, 0, 1_200), request(10, 0, 20_000)], {
          pauseUs: 20 * US_PER_MS,
        }),
      );
      stage.at(PROTECTED_MS + 15, () => {
        // The SVM gets each segment later than the one before, so that the PVM's acknowledgements are lowered.
        let count = 0;
        stage.onSegment(world.secondaryGuest.to, () => ({ lateUs: 5 * US_PER_MS * count++ }));
        let isDamaged = false;
        stage.onSegment(world.clients[0]!.toSwitch, (segment, frame, packet) => {
          if (isDamaged || segment.payload.length < 1_000) return undefined;
          isDamaged = true;
          const copy = frame.slice();
          copy[frame.length - packet.payload.length + 13]! ^= SYN;
          return { frame: copy };
        });
      });
    });
  },
  untilMs: PROTECTED_MS + 500,
};

const REPEAT_AT_THE_HEAD: Scenario = {
  name: 'repeat-of-a-part',
  about:
    'A long segment of the PVM waited for bytes of the SVM that were lost, and its beginning, which both guests repeated, waited behind it: the SVM could not go on before the client had that.',
  options: (calm) => ({ ...calm, guestTcp: { ...calm.guestTcp, gsoSegments: 20 } }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(10), request(10_000)], { pauseUs: 50 * US_PER_MS }));
      stage.at(PROTECTED_MS + 30, () => {
        stage.onSegment(world.secondaryGuest.from, (segment) =>
          segment.payload.length > 1_000 ? { isLost: true } : undefined,
        );
      });
      stage.at(PROTECTED_MS + 100, () => stage.release(world.secondaryGuest.from));
      // Both guests repeat the first 1448 bytes after 200 ms.
      stage.at(PROTECTED_MS + 300, () => {
        const { receivedCount } = session;
        stage.demand('G6', receivedCount > 1_000, `the client has ${receivedCount} bytes`);
      });
    });
  },
  untilMs: PROTECTED_MS + 400,
};

/** Datagrams to the guest's service, which it answers with one of so many bytes. */
function ask(stage: Stage, port: number, answerBytes: number): void {
  const { host } = stage.world.clients[0]!;
  host.nowUs = stage.world.nowUs;
  const guest = stage.world.pvm.host.state.ip4;
  host.sendDatagram(guest, port, SERVICE_PORT, datagramRequest(0, answerBytes, 1, 8));
  stage.world.clients[0]!.reschedule();
}

const DATAGRAM_WITHOUT_ROOM: Scenario = {
  name: 'datagram-without-room',
  about:
    'A datagram whose flow found no room in the table waited for a checkpoint, and a later one of the same flow, for which there was room again, reached the client before it.',
  options: (calm) => ({
    ...calm,
    config: { ...calm.config, flowsMax: 2, compareTimeoutUs: 500 * US_PER_MS },
  }),
  script: (stage) => {
    const { world } = stage;
    const lengths: number[] = [];
    stage.at(PROTECTED_MS, () => {
      ask(stage, 1, 20);
    });
    stage.at(PROTECTED_MS + 5, () => {
      // Two answers fill the table for 15 ms: the SVM is behind. The next checkpoint comes 100 ms after the first.
      world.secondaryGuest.to.script = () => ({ lateUs: 15 * US_PER_MS });
      world.clients[0]!.fromSwitch.script = (frame) => {
        const packet = parseIp(frame);
        if (packet?.protocol === PROTOCOL_UDP) lengths.push(packet.payload.length);
        return undefined;
      };
      ask(stage, 2, 20);
      ask(stage, 3, 20);
    });
    // Of the fourth, which finds no room, the SVM's is lost; the fifth is of the same flow.
    world.secondaryGuest.from.script = (frame) =>
      parseIp(frame)?.payload.length === 108 ? { isLost: true } : undefined;
    stage.at(PROTECTED_MS + 10, () => ask(stage, 4, 100));
    stage.at(PROTECTED_MS + 30, () => ask(stage, 4, 200));
    stage.at(PROTECTED_MS + 300, () => {
      const order = lengths.filter((length) => length >= 100);
      stage.demand('G4', order.join() === '108,208', `the answers came as ${order.join()}`);
    });
  },
  untilMs: PROTECTED_MS + 320,
};

const SPENT_EPOCH: Scenario = {
  name: 'spent-epoch',
  about:
    "The epoch of a checkpoint that was given up was used again: the primary's commit timeout crossed the secondary's commit, and the next checkpoint had a number that the secondary ignored but answered. The primary called itself protected, the secondary held nothing.",
  options: (calm) => ({
    ...calm,
    config: { ...calm.config, checkpointCommitTimeoutUs: 2 * US_PER_S },
    peer: { ...calm.peer, timeoutUs: 10 * US_PER_S },
  }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      // The secondary's answer to the commit takes longer than the primary waits.
      stage.onPhase('commit', () => world.link.stall('to-primary', 2_300 * US_PER_MS));
      stage.checkpoint();
    });
    stage.at(PROTECTED_MS + 5_000, () => {
      stage.demand('G9', world.primary.engine.state === 'protected', 'the pair does not recover');
      const { failoverReady } = world.secondary.engine.status(world.secondary.nowUs);
      stage.demand('G9', failoverReady, 'the primary is protected, the secondary holds nothing');
      stage.open(plan([request(3_000)]));
      stage.killPrimary();
    });
  },
  untilMs: PROTECTED_MS + 6_000,
};

const ABORT_AFTER_THE_NEXT: Scenario = {
  name: 'abort-after-the-next',
  about:
    "The abort of a checkpoint came when the VM layer had committed the next one at the secondary by its own word: the primary's commit of that was ignored as known, and not answered, since the abort had made the secondary worthless. So it went with each checkpoint after it.",
  options: (calm) => ({
    ...calm,
    peer: { ...calm.peer, timeoutUs: 10 * US_PER_S },
    vm: {
      ...calm.vm,
      oneMessage: 1,
      tellsSecondary: 1,
      copyUsMax: 0,
      answerTimeoutUs: 50 * US_PER_MS,
    },
  }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      // The answer to the commit takes longer than the VM layer waits, which makes the next checkpoint at once.
      world.link.stall('to-primary', 70 * US_PER_MS);
      stage.onPhase('resumed', () => stage.checkpoint());
      stage.checkpoint();
    });
    stage.at(PROTECTED_MS + 80, () => {
      const { state } = world.primary.engine;
      stage.demand('G9', state === 'protected', 'the commit is not answered');
      const { failoverReady } = world.secondary.engine.status(world.secondary.nowUs);
      stage.demand('G9', failoverReady, 'the primary is protected, the secondary holds nothing');
      stage.open(plan([request(3_000)]));
      stage.killPrimary();
    });
  },
  untilMs: PROTECTED_MS + 1_000,
};

const COMMIT_AFTER_ABORT: Scenario = {
  name: 'commit-after-an-abort',
  about:
    "The primary's commit was on its way when it died, and the VM layer threw the copy away and aborted the checkpoint: the secondary committed it all the same, and translated no longer, although the SVM ran on in its own state.",
  options: (calm) => ({ ...calm, vm: { ...calm.vm, isStaged: true } }),
  script: (stage) => {
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(10), request(2_000)], { pauseUs: 100 * US_PER_MS }));
      stage.at(PROTECTED_MS + 20, () => {
        stage.onPhase('commit', () => stage.crashPrimary());
        stage.checkpoint();
      });
      stage.at(PROTECTED_MS + 2_000, () => {
        const { receivedCount } = session;
        stage.demand(
          'G5',
          receivedCount === 2_010,
          `the client has ${receivedCount} bytes of 2010`,
        );
      });
    });
  },
  untilMs: PROTECTED_MS + 2_100,
};

const ANSWER_TO_ANOTHER_SYN: Scenario = {
  name: 'answer-to-another-syn',
  about:
    "The SVM had answered a SYN that the PVM never got; then the client tried again from the same port, and the PVM's answer to the new SYN was released for the SVM's to the old one.",
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      stage.onSegment(world.primaryGuest.to, () => ({ isLost: true }));
      const first = stage.open(plan([request(10)]));
      stage.at(PROTECTED_MS + 10, () => {
        stage.release(world.primaryGuest.to);
        const again = stage.replace([first], plan([request(10)]))[0]!;
        // The SVM has the older connection there; a checkpoint brings it the new one.
        stage.at(PROTECTED_MS + 2_500, () => {
          stage.demand('G6', again.receivedCount === 10, 'the client has no answer');
        });
      });
    });
  },
  untilMs: PROTECTED_MS + 2_600,
};

const RESET_AT_A_COMMIT: Scenario = {
  name: 'reset-at-a-commit',
  about:
    'An operator reset the secondary while the commit was on its way to it: the secondary committed, and stayed ready for a failover, while the primary served alone because of the reset.',
  script: (stage) => {
    const { primary, secondary } = stage.world;
    stage.at(PROTECTED_MS, () => {
      stage.onPhase('commit', () => {
        secondary.command((engine, nowUs) => engine.reset('operator', nowUs));
      });
      stage.checkpoint();
    });
    stage.at(PROTECTED_MS + 20, () => {
      const { state } = primary.engine;
      stage.demand('G9', state === 'unprotected', `the primary is ${state} after the reset`);
      const { failoverReady } = secondary.engine.status(secondary.nowUs);
      stage.demand('G9', !failoverReady, 'the primary serves alone, the secondary is ready');
    });
  },
  untilMs: PROTECTED_MS + 30,
};

/** Ports on which it is tried: with every other ISN the old numbers lie before the new ones. */
const REUSED_PORTS = 12;

const OUTPUT_OF_THE_CONNECTION_BEFORE: Scenario = {
  name: 'output-of-the-connection-before',
  about:
    'Output that the PVM still held of a connection went out when the next connection of the same ports began and its numbers lay so that the old ones counted as agreed.',
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const before = Array.from({ length: REUSED_PORTS }, () =>
        stage.open(plan([request(10), request(500)], { pauseUs: 20 * US_PER_MS })),
      );
      stage.at(PROTECTED_MS + 15, () =>
        stage.onSegment(world.secondaryGuest.from, (segment) =>
          segment.payload.length > 100 ? { isLost: true } : undefined,
        ),
      );
      stage.at(PROTECTED_MS + 40, () => {
        for (const { receivedCount } of before) {
          stage.demand('G1', receivedCount === 10, `the client has ${receivedCount} bytes`);
        }
        const next = stage.replace(before, plan([request(10)]));
        stage.at(PROTECTED_MS + 1_500, () => {
          const isThere = next.every(({ receivedCount }) => receivedCount === 10);
          stage.demand('G6', isThere, 'a client has no answer');
        });
      });
    });
  },
  untilMs: PROTECTED_MS + 1_600,
};

const WINDOW_OF_THE_CONNECTION_BEFORE: Scenario = {
  name: 'window-of-the-connection-before',
  about:
    "An acknowledgement was kept for its window, which the SVM had not offered; then the next connection of the same ports began, and what the SVM's SYN-ACK said of that one let it out.",
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      // The SVM's TCP takes what it has room for, its service reads nothing.
      world.svm.stick(100 * US_PER_MS);
      const before = Array.from({ length: REUSED_PORTS }, () =>
        stage.open(plan([request(10, 0, 80_000)])),
      );
      stage.at(PROTECTED_MS + 20, () => {
        stage.onSegment(world.primaryGuest.from, (segment) =>
          (segment.flags & SYN) !== 0 ? { lateUs: 10 * US_PER_MS } : undefined,
        );
        const next = stage.replace(before, plan([request(10)]));
        stage.at(PROTECTED_MS + 1_500, () => {
          const isThere = next.every(({ receivedCount }) => receivedCount === 10);
          stage.demand('G6', isThere, 'a client has no answer');
        });
      });
    });
  },
  untilMs: PROTECTED_MS + 1_600,
};

const COMMIT_OF_AN_UNDONE_CHECKPOINT: Scenario = {
  name: 'commit-of-an-undone-checkpoint',
  about:
    'A checkpoint was undone by a reset after it had begun, the primary served alone, and the late commit of the older copy was taken for a new checkpoint: the client had bytes that the SVM had never sent.',
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(10), request(10)], { pauseUs: 20 * US_PER_MS }));
      stage.at(PROTECTED_MS + 15, () => {
        world.vm.isLate = true;
        stage.onPhase('loaded', () => {
          world.primary.command((engine, nowUs) => engine.reset('operator', nowUs));
        });
        stage.checkpoint();
      });
      stage.at(PROTECTED_MS + 60, () => {
        stage.demand('G6', session.receivedCount === 20, 'the PVM has not answered meanwhile');
        world.vm.isLate = false;
        // With the commit refused another checkpoint has to come before the primary may die.
        if (world.primary.engine.state === 'protected') stage.killPrimary();
        else {
          stage.onPhase('committed', () => stage.killPrimary());
          stage.checkpoint();
        }
      });
    });
  },
  untilMs: PROTECTED_MS + 500,
};

export const RELEASE_SCENARIOS: readonly Scenario[] = [
  GAP_FILLER,
  WINDOW_AT_COMMIT,
  LATE_OLD_ACK,
  SPENT_EPOCH,
  ABORT_AFTER_THE_NEXT,
  COMMIT_AFTER_ABORT,
  ACK_OF_A_REPEAT,
  WINDOW_OF_A_SYN,
  SYN_BIT,
  REPEAT_AT_THE_HEAD,
  DATAGRAM_WITHOUT_ROOM,
  ANSWER_TO_ANOTHER_SYN,
  RESET_AT_A_COMMIT,
  OUTPUT_OF_THE_CONNECTION_BEFORE,
  WINDOW_OF_THE_CONNECTION_BEFORE,
  COMMIT_OF_AN_UNDONE_CHECKPOINT,
];
