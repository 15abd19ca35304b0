/**
 * The steps of `ReusedPorts`: what a guest, the client, the VM layer or time does next; and where a guest stands.
 *
 * @module
 */

export type GuestName = 'primary' | 'secondary';
/** Of a segment on its way to the engine. `late`: after the guest's next one. Only the SVM's can be lost. */
export type Fate = 'arrives' | 'late' | 'lost';

export interface WorldOptions {
  /** Room for two flows, so that the connection is forgotten when others come. */
  readonly isTiny: boolean;
  readonly seesClients: boolean;
  /** The first connection is open from the start: has the PVM said something before the first checkpoint? */
  readonly isSeenOpen: boolean;
  readonly shift: number;
}

export type Step =
  /** A connection by the client's SYN, or by the SYNs that the guests will send. `distance` of the PVM's ISN from the end of what it has sent; `total` bytes of a guest. */
  | { does: 'connect'; by: 'client' | 'guests'; distance: number; shift: number; total: number }
  /** The client's SYN again, without options. */
  | { does: 'connect again' }
  /** The guest's SYN-ACK or SYN of the newest connection. `hasStamps`: with timestamps. */
  | { does: 'begin'; guest: GuestName; window: number; hasStamps: boolean }
  | { does: 'begin again'; guest: GuestName }
  /** New bytes, and the FIN when they are the last ones and `ends`. */
  | { does: 'send'; guest: GuestName; bytes: number; ends: boolean; fate: Fate }
  /** Bytes that were sent, from `at` (modulo all that were sent) on. */
  | {
      does: 'repeat';
      guest: GuestName;
      at: number;
      bytes: number;
      fate: Fate;
      inFragments: boolean;
    }
  /** Acknowledges so many more bytes of the client, opens the window by so many units, reports blocks beyond: distances from what came before. */
  | {
      does: 'ack';
      guest: GuestName;
      bytes: number;
      opens: number;
      sack: readonly number[];
      fate: Fate;
    }
  | { does: 'reset'; guest: GuestName; fate: Fate }
  /** Bytes of the client, and its ACK of all that it was told; its SYN-ACK, where that is due. */
  | { does: 'client'; bytes: number }
  /** Both guests come to the same, the SVM last. */
  | { does: 'catch up' }
  | { does: 'checkpoint'; lastsUs: number }
  /** The peer is back after so many steps, and a checkpoint follows. */
  | { does: 'lose peer'; steps: number }
  | { does: 'pass'; us: number }
  /** Of another flow. */
  | { does: 'datagram'; port: number };

/** Where a guest stands in one connection. */
export interface Stand {
  hasBegun: boolean;
  hasStamps: boolean;
  /** Bytes of its stream. */
  sent: number;
  hasFin: boolean;
  hasReset: boolean;
  /** It has sent a RST before the connection was open, which ended nothing. */
  hasRefused: boolean;
  /** Bytes of the client's stream, and how many it would take: what it announces, and the edge of that. */
  acked: number;
  window: number;
  edge: number;
  /** The SVM has had the next connection meanwhile: what the client was not told of this one is forgotten. */
  isForgotten: boolean;
  /** Must the client hear of `acked`? Not behind a RST. */
  isAckDue: boolean;
  /** Of two segments with one ACK number that the SVM does not cover, the engine keeps the one that comes later, though it is the older: the client need not hear of `edge`. */
  isEdgeLost: boolean;
}

export const nobody = (): Stand => ({
  hasBegun: false,
  hasStamps: false,
  sent: 0,
  hasFin: false,
  hasReset: false,
  hasRefused: false,
  acked: 0,
  window: 0,
  edge: 0,
  isForgotten: false,
  isAckDue: false,
  isEdgeLost: false,
});
