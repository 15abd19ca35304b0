/**
 * An EngineOutput that keeps everything, frames as copies, for tests of the engines.
 *
 * @module
 */
import type { EngineOutput } from '../../src/env/engine.ts';
import type { FrameBuffer } from '../../src/env/frame.ts';
import type {
  CheckpointRequest,
  LinkFrameKind,
  LinkMessage,
  ProxyEvent,
} from '../../src/env/messages.ts';
import { dissect, FrameInfo } from '../../src/wire/frame.ts';
import { cloneFrame, type TestFrame } from './frame-builder.ts';

export interface PeerFrame extends TestFrame {
  readonly kind: LinkFrameKind;
  readonly epoch: number;
}

export class RecordingOutput implements EngineOutput {
  net: TestFrame[] = [];
  guest: TestFrame[] = [];
  peerFrames: PeerFrame[] = [];
  messages: LinkMessage[] = [];
  requests: CheckpointRequest[] = [];
  events: ProxyEvent[] = [];

  sendToNet(buffer: FrameBuffer, offset: number, length: number): void {
    this.net.push(cloneFrame({ buffer, offset, length }));
  }

  sendToGuest(buffer: FrameBuffer, offset: number, length: number): void {
    this.guest.push(cloneFrame({ buffer, offset, length }));
  }

  sendFrameToPeer(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void {
    this.peerFrames.push({ kind, epoch, ...cloneFrame({ buffer, offset, length }) });
  }

  sendMessageToPeer(message: LinkMessage): void {
    this.messages.push(message);
  }

  requestCheckpoint(request: CheckpointRequest): void {
    this.requests.push(request);
  }

  event(event: ProxyEvent): void {
    this.events.push(event);
  }

  /** What went to the network since the last call. */
  takeNet(): TestFrame[] {
    const frames = this.net;
    this.net = [];
    return frames;
  }

  takeMessages(): LinkMessage[] {
    const messages = this.messages;
    this.messages = [];
    return messages;
  }
}

/** A fresh description of a frame. */
export function infoOf(frame: TestFrame): FrameInfo {
  const info = new FrameInfo();
  dissect(frame.buffer, frame.offset, frame.length, info);
  return info;
}

/** Payload as text. */
export function payloadOf(frame: TestFrame): string {
  const info = infoOf(frame);
  const end = info.payloadOffset + info.payloadBytes;
  return new TextDecoder().decode(frame.buffer.bytes.slice(info.payloadOffset, end));
}
