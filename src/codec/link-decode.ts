/**
 * Reads the peer link's byte stream, in chunks of any size. Layout: `link-msg.ts`.
 *
 * Whole messages inside a chunk are handed out in place; only one that spans chunks is put together, in
 * one buffer that is used again. Lengths are checked before anything is kept, so a stranger makes
 * the decoder hold at most LINK_HELLO_BODY_BYTES_MAX, and a peer LINK_BODY_BYTES_MAX. Never throws on any bytes.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerHello } from '../env/link.ts';
import type { LinkFrameKind, LinkMessage } from '../env/messages.ts';
import { LinkBodyReader } from './link-body.ts';
import {
  LINK_BODY_BYTES_MAX,
  LINK_FRAME_HEADROOM,
  LINK_FRAME_KIND_MAX,
  LINK_HEADER_BYTES,
  LINK_HELLO_BODY_BYTES_MAX,
  LINK_HELLO_TEXT_BYTES_MAX,
  LINK_REFUSAL_CODES,
  LINK_TEXT_BYTES_MAX,
  LINK_TYPE_FRAME,
  LINK_TYPE_GOODBYE,
  LINK_TYPE_HEARTBEAT,
  LINK_TYPE_HELLO,
  LINK_TYPE_REFUSE,
  LINK_TYPE_WELCOME,
  LINK_VERSION,
  type LinkHeartbeat,
  type LinkRefusal,
  namesByCode,
} from './link-msg.ts';

/** Takes what the decoder finds, in the order of the stream. */
export interface LinkDecodeHandler {
  /** `isAnswer`: welcome (from the listening end), otherwise hello. */
  onHello(hello: PeerHello, isAnswer: boolean): void;
  onRefuse(refusal: LinkRefusal): void;
  onHeartbeat(heartbeat: LinkHeartbeat): void;
  onGoodbye(reason: string): void;
  /** The frame lies in the chunk (or the decoder's own buffer) and is lent until `onBatchEnd` returns. */
  onFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void;
  onMessage(message: LinkMessage): void;
  /** After the last message of a chunk, if there was any. */
  onBatchEnd(): void;
}

/**
 * What is wrong with the stream. `not-colo`: the first message is no hello of this protocol.
 * `version`: a hello of another version. `too-long`, `malformed`: lengths or fields break the layout.
 */
export interface LinkDecodeError {
  readonly error: 'not-colo' | 'version' | 'too-long' | 'malformed';
  /** The peer's version, with `version`; otherwise 0. */
  readonly version: number;
  readonly text: string;
}

const REFUSAL_NAMES = namesByCode(LINK_REFUSAL_CODES);

/** Decoder of one connection. Starts with only hello, welcome and refuse allowed; see `open`. */
export class LinkDecoder {
  readonly #handler: LinkDecodeHandler;
  #isOpen = false;
  #isStopped = false;
  /** Messages of the current chunk that were handed out. */
  #handedOut = 0;
  #error: LinkDecodeError | undefined;
  /** A message that spans chunks; `#heldBytes` of it are there. */
  #held: FrameBuffer = createBuffer(LINK_HEADER_BYTES + LINK_HELLO_BODY_BYTES_MAX);
  #heldBytes = 0;

  constructor(handler: LinkDecodeHandler) {
    this.#handler = handler;
  }

  /** The handshake is done: from now on everything but another hello is allowed. */
  open(): void {
    this.#isOpen = true;
  }

  /** Hands out nothing any more; may be called from within a handler. */
  stop(): void {
    this.#isStopped = true;
  }

  /**
   * Takes the next bytes of the stream; borrows them until it returns. After an error the decoder is
   * stopped. What came before the error was handed out.
   */
  push(chunk: Uint8Array): LinkDecodeError | undefined {
    if (this.#isStopped) return this.#error;
    let offset = 0;
    this.#handedOut = 0;
    if (this.#heldBytes > 0) {
      offset = this.#fill(chunk);
      if (this.#heldBytes > 0) return this.#error;
    }
    const buffer: FrameBuffer = {
      bytes: chunk,
      view: new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength),
    };
    while (!this.#isStopped && chunk.length - offset >= LINK_HEADER_BYTES) {
      const messageBytes = this.#checkHeader(buffer.view, offset);
      if (messageBytes === 0 || chunk.length - offset < messageBytes) break;
      this.#dispatch(buffer, offset, messageBytes);
      offset += messageBytes;
    }
    // After an error the batch of good messages before it still ends; after stop() nobody wants to hear of it.
    const isHeard = !this.#isStopped || this.#error !== undefined;
    if (this.#handedOut > 0 && isHeard) this.#handler.onBatchEnd();
    // Only now: what was lent from the held buffer is given back at the end of the batch.
    if (!this.#isStopped && offset < chunk.length) this.#hold(chunk, offset);
    return this.#error;
  }

  /** Starts a held message with the end of a chunk; it is incomplete, and its header, if whole, was checked. */
  #hold(chunk: Uint8Array, offset: number): void {
    const room =
      LINK_HEADER_BYTES + (this.#isOpen ? LINK_BODY_BYTES_MAX : LINK_HELLO_BODY_BYTES_MAX);
    if (this.#held.bytes.length < room) this.#held = createBuffer(room);
    this.#held.bytes.set(offset === 0 ? chunk : chunk.subarray(offset));
    this.#heldBytes = chunk.length - offset;
  }

  /** Completes the held message; returns how much of the chunk it took. `#heldBytes` is 0 when it was handed out. */
  #fill(chunk: Uint8Array): number {
    let taken = 0;
    if (this.#heldBytes < LINK_HEADER_BYTES) {
      taken = this.#copy(chunk, 0, LINK_HEADER_BYTES);
      if (this.#heldBytes < LINK_HEADER_BYTES) return taken;
    }
    const messageBytes = this.#checkHeader(this.#held.view, 0);
    if (messageBytes === 0) return taken;
    taken += this.#copy(chunk, taken, messageBytes);
    if (this.#heldBytes < messageBytes) return taken;
    this.#heldBytes = 0;
    this.#dispatch(this.#held, 0, messageBytes);
    return taken;
  }

  /** Appends to the held message until it has `bytesWanted`, as far as the chunk reaches. */
  #copy(chunk: Uint8Array, offset: number, bytesWanted: number): number {
    const count = Math.min(bytesWanted - this.#heldBytes, chunk.length - offset);
    this.#held.bytes.set(chunk.subarray(offset, offset + count), this.#heldBytes);
    this.#heldBytes += count;
    return count;
  }

  #fail(error: LinkDecodeError['error'], text: string, version = 0): void {
    this.#isStopped = true;
    this.#error = { error, text, version };
  }

  /** Length of the whole message whose header lies at `offset`, or 0 after an error. */
  #checkHeader(view: DataView, offset: number): number {
    const bodyBytes = view.getUint32(offset);
    const typeAndZero = view.getUint32(offset + 4);
    const type = typeAndZero >>> 24;
    const isHandshake = type >= LINK_TYPE_HELLO && type <= LINK_TYPE_REFUSE;
    if ((typeAndZero & 0xff_ffff) !== 0 || (!this.#isOpen && !isHandshake)) {
      this.#fail(this.#isOpen ? 'malformed' : 'not-colo', `message header with type ${type}`);
      return 0;
    }
    const isTooLong = bodyBytes > (this.#isOpen ? LINK_BODY_BYTES_MAX : LINK_HELLO_BODY_BYTES_MAX);
    if (isTooLong) {
      this.#fail(this.#isOpen ? 'too-long' : 'not-colo', `message of ${bodyBytes} bytes`);
      return 0;
    }
    return LINK_HEADER_BYTES + bodyBytes;
  }

  #dispatch(buffer: FrameBuffer, offset: number, messageBytes: number): void {
    const type = buffer.bytes[offset + 4]!;
    if (type > LINK_TYPE_FRAME && type <= LINK_TYPE_FRAME + LINK_FRAME_KIND_MAX) {
      this.#dispatchFrame(type, buffer, offset, messageBytes);
    } else {
      const reader = new LinkBodyReader(buffer, offset + LINK_HEADER_BYTES, offset + messageBytes);
      if (type <= LINK_TYPE_GOODBYE) this.#dispatchLink(type, reader);
      else this.#dispatchControl(type, reader);
    }
    if (this.#error === undefined) this.#handedOut++;
  }

  #dispatchFrame(type: number, buffer: FrameBuffer, offset: number, messageBytes: number): void {
    const length = messageBytes - LINK_FRAME_HEADROOM;
    if (length < 0) {
      this.#fail('malformed', 'frame message without a virtio-net header');
      return;
    }
    const epoch = buffer.view.getUint32(offset + LINK_HEADER_BYTES);
    // The range of `type` was checked: the difference is 1, 2 or 3.
    const kind = (type - LINK_TYPE_FRAME) as LinkFrameKind;
    this.#handler.onFrame(kind, epoch, buffer, offset + LINK_FRAME_HEADROOM, length);
  }

  /** The link's own messages. */
  #dispatchLink(type: number, reader: LinkBodyReader): void {
    if (type === LINK_TYPE_HELLO || type === LINK_TYPE_WELCOME) this.#dispatchHello(type, reader);
    else if (type === LINK_TYPE_REFUSE) this.#dispatchRefuse(reader);
    else if (type === LINK_TYPE_HEARTBEAT) {
      const heartbeat = { sentUs: reader.u64(), echoUs: reader.u64(), echoDelayUs: reader.u64() };
      if (reader.isWhole) this.#handler.onHeartbeat(heartbeat);
      else this.#fail('malformed', 'heartbeat');
    } else if (type === LINK_TYPE_GOODBYE) {
      const reason = reader.text(LINK_TEXT_BYTES_MAX);
      if (reader.isWhole) this.#handler.onGoodbye(reason);
      else this.#fail('malformed', 'goodbye');
    } else this.#fail('malformed', `message type ${type}`);
  }

  #dispatchHello(type: number, reader: LinkBodyReader): void {
    const version = reader.magicAndVersion();
    if (version === 0) this.#fail('not-colo', 'hello without the magic');
    else if (version !== LINK_VERSION) this.#fail('version', `version ${version}`, version);
    else {
      const hello = reader.hello();
      if (hello === undefined || this.#isOpen) this.#fail('malformed', 'hello');
      else this.#handler.onHello(hello, type === LINK_TYPE_WELCOME);
    }
  }

  #dispatchRefuse(reader: LinkBodyReader): void {
    const version = reader.magicAndVersion();
    // A later version may know more reasons; that it refuses, and why in words, is enough.
    const reason = REFUSAL_NAMES[reader.u8()] ?? 'version';
    reader.u8();
    const text = reader.text(LINK_HELLO_TEXT_BYTES_MAX);
    if (version === 0) this.#fail('not-colo', 'refuse without the magic');
    else if (!reader.isWhole) this.#fail('malformed', 'refuse');
    else this.#handler.onRefuse({ reason, version, text });
  }

  #dispatchControl(type: number, reader: LinkBodyReader): void {
    const message = reader.message(type);
    if (message === undefined || !reader.isWhole) this.#fail('malformed', `message type ${type}`);
    else this.#handler.onMessage(message);
  }
}

function createBuffer(bytes: number): FrameBuffer {
  const memory = new Uint8Array(bytes);
  return { bytes: memory, view: new DataView(memory.buffer) };
}
