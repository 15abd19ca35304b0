/**
 * Faults around a failover, in the secondary engine.
 *
 * @module
 */
import { US_PER_MS, US_PER_S } from '../../base/time.ts';
import type { Session } from '../host/client.ts';
import { FLAG_CLOSE } from '../host/content.ts';
import { parseArp, type SimFrame } from '../net/packet.ts';
import { ACK, FIN, SYN } from '../tcp/segment.ts';
import { PROTECTED_MS, plan, request, type Scenario, type Stage } from './scenario.ts';

/** The whole session is over for the client, without an error. */
function isDone(session: Session): boolean {
  const isOver = session.isDone || session.connection.state === 'time-wait';
  return isOver && session.error === '';
}

/** The client's segments towards the primary are lost from now on: what it says next, only a survivor will hear. */
function muteClient(stage: Stage): void {
  stage.onSegment(stage.world.primaryNet.to, () => ({ isLost: true }));
}

const PROBE_OF_REPLACED_STATE: Scenario = {
  name: 'probe-of-replaced-state',
  about:
    "The probe after a failover acknowledged bytes that only the SVM's replaced state had received: the client dropped them from its buffer, the connection hung.",
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(
        plan([request(10), request(10, 0, 700)], { pauseUs: 20 * US_PER_MS }),
      );
      stage.at(PROTECTED_MS + 15, () => {
        stage.demand('G5', session.receivedCount === 10, 'the first answer is not there');
        // From here on the PVM hears nothing: the SVM alone receives the second request, and acknowledges it.
        stage.onSegment(world.primaryGuest.to, () => ({ isLost: true }));
      });
      stage.at(PROTECTED_MS + 30, () => {
        stage.onPhase('committed', () => stage.killPrimary());
        stage.checkpoint();
      });
      stage.at(PROTECTED_MS + 3_000, () => {
        stage.demand('G5', isDone(session), 'the session does not end after the failover');
      });
    });
  },
  untilMs: PROTECTED_MS + 3_100,
};

const LAST_ACK_OF_FULL_TABLE: Scenario = {
  name: 'last-ack-of-a-full-table',
  about:
    'A translated connection could leave a full table as closed while its last FIN or ACK was on its way: client and SVM then answered each other in numbers that neither knew, for ever.',
  options: (calm) => ({ ...calm, config: { ...calm.config, flowsMax: 2 } }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const requests = [request(10), request(10, FLAG_CLOSE)];
      const closing = stage.open(
        plan(requests, { pauseUs: 500 * US_PER_MS, ending: 'guest-closes' }),
      );
      stage.at(PROTECTED_MS + 100, () => stage.killPrimary());
      // The SVM's answer to the client's FIN is lost; the client sends that FIN again.
      stage.at(PROTECTED_MS + 400, () => {
        const { connection } = closing;
        let hasFin = false;
        stage.onSegment(world.secondaryNet.to, (segment) => {
          if ((segment.flags & FIN) !== 0) hasFin = true;
          return undefined;
        });
        stage.onSegment(world.secondaryNet.from, (segment) => {
          if (segment.dstPort !== connection.localPort) return undefined;
          const ahead = (segment.seq - connection.irs - connection.rcvNxt) | 0;
          stage.demand('G5', Math.abs(ahead) < 1_000, 'the client gets numbers of the SVM');
          return hasFin && world.nowUs < (PROTECTED_MS + 640) * US_PER_MS
            ? { isLost: true }
            : undefined;
        });
      });
      for (let i = 0; i < 4; i++) {
        stage.at(PROTECTED_MS + 620 + i, () =>
          stage.open(plan([request(10)], { ending: 'stays-open' })),
        );
      }
      stage.at(PROTECTED_MS + 4_000, () => {
        stage.demand('G5', isDone(closing), `the session ends: ${closing.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 4_100,
};

/** The copy of the PVM's SYN-ACK stays on its way to the secondary, and the client's first ACK dies with the primary. */
function loseHandshake(stage: Stage): Session {
  const { world } = stage;
  const session = stage.open(plan([request(2_000, 0, 200)]));
  // The client's SYN is with the SVM; nothing else of the primary gets there.
  stage.onSegment(world.secondaryGuest.to, (segment) => {
    if ((segment.flags & SYN) !== 0) world.link.stall('to-secondary', 200 * US_PER_MS);
    return undefined;
  });
  stage.onSegment(world.primaryNet.from, (segment) => {
    if ((segment.flags & SYN) !== 0) muteClient(stage);
    return undefined;
  });
  stage.at(PROTECTED_MS + 20, () => {
    stage.demand(
      'G5',
      session.connection.state === 'established',
      'the client has no SYN-ACK of the PVM',
    );
    stage.killPrimary();
  });
  return session;
}

const HANDSHAKE_LOST_WITH_PRIMARY: Scenario = {
  name: 'handshake-lost-with-the-primary',
  about:
    "The copy of the PVM's SYN-ACK and the client's first ACK were both lost with the primary: the client's next segment reached the SVM untranslated and was answered by a RST.",
  script: (stage) => {
    stage.at(PROTECTED_MS, () => {
      const session = loseHandshake(stage);
      // The SVM's SYN-ACK comes; the client answers by an ACK at the end of what it has sent.
      stage.at(PROTECTED_MS + 4_000, () => {
        stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 4_100,
};

const PROBE_BEFORE_THE_FIRST_ACK: Scenario = {
  name: 'probe-before-the-first-ack',
  about:
    'As handshake-lost-with-the-primary, but what the survivor heard first of the client was a probe, one before its first byte: it did not count, and reached the SVM untranslated.',
  options: (calm) => ({ ...calm, clientTcp: { ...calm.clientTcp, keepaliveUs: 100 * US_PER_MS } }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = loseHandshake(stage);
      const { connection } = session;
      let isProbed = false;
      stage.onSegment(world.secondaryNet.to, (segment) => {
        if ((segment.flags & ACK) === 0) return undefined;
        isProbed ||= segment.seq === connection.iss;
        return isProbed ? undefined : { isLost: true };
      });
      stage.at(PROTECTED_MS + 4_000, () => {
        stage.demand('G5', isProbed, 'the client has sent no probe');
        stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 4_100,
};

const SYN_IN_A_FULL_TABLE: Scenario = {
  name: 'syn-in-a-full-table',
  about:
    "A connection began for which the secondary's table had no room, all others being translated: the SVM got its segments untranslated, and would have reset it after a failover.",
  options: (calm) => ({ ...calm, config: { ...calm.config, flowsMax: 2 } }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      // Nobody makes the checkpoint that the secondary asks for.
      world.vm.isDeaf = true;
      // Closed: for the primary nothing is left of them, the secondary lets them linger.
      for (let i = 0; i < 2; i++) stage.open(plan([request(10)]));
      stage.at(PROTECTED_MS + 20, () => {
        const session = stage.open(plan([request(2_000)]));
        stage.at(PROTECTED_MS + 60, () => stage.killPrimary());
        stage.at(PROTECTED_MS + 4_000, () => {
          stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
        });
      });
    });
  },
  untilMs: PROTECTED_MS + 4_100,
};

const DAMAGED_FIRST_ACK: Scenario = {
  name: 'damaged-first-ack',
  about:
    "One flipped bit in the client's first ACK to the survivor decided over the connection's numbers.",
  script: (stage) => {
    stage.at(PROTECTED_MS, () => {
      const session = loseHandshake(stage);
      let isDamaged = false;
      stage.onSegment(stage.world.secondaryNet.to, (segment, frame, packet) => {
        if (isDamaged || (segment.flags & (SYN | ACK)) !== ACK) return undefined;
        isDamaged = true;
        const copy = frame.slice();
        // The ACK number; the checksum stays as it was.
        const header = frame.length - packet.payload.length;
        copy[header + 9]! ^= 0x10;
        return { frame: copy };
      });
      stage.at(PROTECTED_MS + 4_000, () => {
        stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 4_100,
};

const HANDSHAKE_AT_A_COMMIT: Scenario = {
  name: 'handshake-at-a-commit',
  about:
    "The SVM had repeated a SYN-ACK, the copy of the PVM's was not there, and a checkpoint replaced the SVM's state: the secondary waited for another SYN-ACK of the SVM, and kept everything of the client from it.",
  options: (calm) => ({
    ...calm,
    peer: { ...calm.peer, timeoutUs: 2 * US_PER_S },
    vm: { ...calm.vm, oneMessage: 1 },
  }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(1_000)]));
      let syn: SimFrame | undefined;
      stage.onSegment(world.clients[0]!.toSwitch, (segment, frame) => {
        if ((segment.flags & SYN) === 0) return { isLost: true };
        syn = frame;
        return undefined;
      });
      // Another sync, with the connection half open: the secondary knows nothing of it.
      stage.at(PROTECTED_MS + 5, () => world.link.cut(true));
      stage.at(PROTECTED_MS + 150, () => {
        stage.demand('G9', world.primary.engine.state === 'protected', 'there is no new sync');
        stage.release(world.clients[0]!.toSwitch);
        world.link.stall('to-secondary', 10 * US_PER_S);
        world.secondaryGuest.to.send(syn!);
      });
      // By now the client has repeated its request, and the PVM has it.
      stage.at(PROTECTED_MS + 1_100, () => {
        stage.onPhase('commit', () => stage.crashPrimary());
        stage.checkpoint();
      });
      stage.at(PROTECTED_MS + 5_000, () => {
        stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 5_100,
};

const SYN_ACK_OF_THE_SVM_ALONE: Scenario = {
  name: 'syn-ack-of-the-svm-alone',
  about:
    "A SYN-ACK that only the SVM had sent: its retained copy had the timestamp margin of a failover, its repetition had not, so that the client's PAWS refused everything for 16 s.",
  script: (stage) => {
    const { world } = stage;
    // Both sides know each other's address from here on.
    stage.at(PROTECTED_MS, () => stage.open(plan([request(10)])));
    stage.at(PROTECTED_MS + 20, () => {
      world.primaryGuest.to.isCut = true;
      const session = stage.open(plan([request(2_000)]));
      stage.at(PROTECTED_MS + 40, () => {
        // The client's answer to the retained SYN-ACK is lost, so that the SVM repeats it.
        stage.onSegment(world.secondaryNet.to, (segment) =>
          (segment.flags & ACK) !== 0 ? { isLost: true } : undefined,
        );
        stage.killPrimary();
      });
      stage.at(PROTECTED_MS + 2_500, () => stage.release(world.secondaryNet.to));
      stage.at(PROTECTED_MS + 9_000, () => {
        stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 9_100,
};

const ADDRESSES_OF_A_SILENT_GUEST: Scenario = {
  name: 'addresses-of-a-silent-guest',
  about:
    'A secondary that had not seen a frame of its guest since it was started knew no address to announce at a failover: the switch moved only when a client asked for its neighbour again.',
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(10), request(10)], { pauseUs: 300 * US_PER_MS }));
      stage.at(PROTECTED_MS + 20, () => {
        world.killSecondary(50 * US_PER_MS, 'any');
        // After the secondary has come back its guest says nothing before the failover.
        stage.onPhase('committed', () => stage.killPrimary());
      });
      let announcements = 0;
      world.secondaryNet.from.script = (frame) => {
        if (parseArp(frame)?.senderIp === world.svm.host.state.ip4) announcements++;
        return undefined;
      };
      stage.at(PROTECTED_MS + 250, () => {
        stage.demand('G5', world.isFailoverGranted, 'there was no failover');
        stage.demand('G5', announcements > 0, 'the address of the guest was not announced');
      });
      stage.at(PROTECTED_MS + 700, () => {
        stage.demand('G5', session.receivedCount === 20, 'the client has no second answer');
      });
    });
  },
  untilMs: PROTECTED_MS + 800,
};

const HANDSHAKE_WITHOUT_ROOM: Scenario = {
  name: 'handshake-without-room',
  about:
    "The peer link had no room for the copy of the PVM's SYN-ACK, nor for the client's first segments: the SVM was given a later one with numbers of the PVM.",
  script: (stage) => {
    stage.at(PROTECTED_MS, () => {
      const session = stage.open(plan([request(1_000, 0, 4_000)]));
      const { iss } = session.connection;
      let hasLost = false;
      stage.crowdOut((segment) => {
        const isSynAck = (segment.flags & (SYN | ACK)) === (SYN | ACK);
        const isFirst = (segment.flags & ACK) !== 0 && ((segment.seq - iss) | 0) <= 1;
        hasLost ||= isSynAck;
        return isSynAck || isFirst;
      });
      stage.at(PROTECTED_MS + 2_000, () => {
        stage.demand('G5', hasLost, 'no SYN-ACK was lost');
        stage.demand('G5', isDone(session), `the session ends: ${session.error || 'never'}`);
      });
    });
  },
  untilMs: PROTECTED_MS + 2_100,
};

export const FAILOVER_SCENARIOS: readonly Scenario[] = [
  PROBE_OF_REPLACED_STATE,
  LAST_ACK_OF_FULL_TABLE,
  HANDSHAKE_LOST_WITH_PRIMARY,
  PROBE_BEFORE_THE_FIRST_ACK,
  SYN_IN_A_FULL_TABLE,
  DAMAGED_FIRST_ACK,
  SYN_ACK_OF_THE_SVM_ALONE,
  HANDSHAKE_AT_A_COMMIT,
  HANDSHAKE_WITHOUT_ROOM,
  ADDRESSES_OF_A_SILENT_GUEST,
];
