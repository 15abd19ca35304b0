/**
 * Public API: the engines of both nodes for embedding them elsewhere (a simulator, another packet path), and the client of
 * the control socket. Frame formats are in `colo-proxy/wire`, protocols in `colo-proxy/codec`.
 *
 * The engines are synchronous and do no I/O: frames, messages and the time go in, calls of an `EngineOutput` come out.
 *
 * @example Counting what a primary would release
 * ```ts
 * import { type EngineOutput, PRIMARY_DEFAULTS, PrimaryEngine } from 'colo-proxy';
 *
 * let released = 0;
 * const output: EngineOutput = {
 *   sendToNet: () => { released++; },
 *   sendToGuest: () => {},
 *   sendFrameToPeer: () => {},
 *   sendMessageToPeer: () => {},
 *   requestCheckpoint: () => {},
 *   event: ({ text }) => console.log(text),
 * };
 * const engine = new PrimaryEngine({ ...PRIMARY_DEFAULTS, hashKey: { low: 1, high: 2 } }, output, 0);
 * engine.onGuestFrame(buffer, offset, length, nowUs);
 * engine.flush(nowUs);
 * ```
 *
 * @module
 */
export { AssertionError } from './base/assert.ts';
export { ColoError, type ColoErrorDetails } from './base/error.ts';
export type { HashKey } from './base/hash.ts';
export { type Micros, NEVER } from './base/time.ts';
export { type ControlCall, callControl, followControl } from './control/client.ts';
export type { ControlRequest, ControlResponse } from './control/protocol.ts';
export type {
  CommandResult,
  Engine,
  EngineOutput,
  EngineStatus,
  FlowStatus,
} from './env/engine.ts';
export type { FrameBuffer, FrameHandler } from './env/frame.ts';
export type {
  CheckpointCause,
  CheckpointRequest,
  LinkFrameKind,
  LinkMessage,
  NodeState,
  ProgressEntry,
  ProxyEvent,
  Role,
} from './env/messages.ts';
export {
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  LINK_FRAME_SECONDARY,
} from './env/messages.ts';
export type { Port, PortCounters } from './env/port.ts';
export type { VmDriver, VmEvents, VmStatus } from './env/vm.ts';
export { FRAME_BYTES_MAX, VNET_HDR_BYTES } from './limits.ts';
export {
  type EngineConfig,
  type PassRule,
  PRIMARY_DEFAULTS,
  type PrimaryConfig,
  SECONDARY_DEFAULTS,
  type SecondaryConfig,
} from './proxy/config.ts';
export { PrimaryEngine } from './proxy/primary.ts';
export { SecondaryEngine } from './proxy/secondary.ts';
