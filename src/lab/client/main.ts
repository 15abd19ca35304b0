/**
 * Process of the lab's clients: ordinary programs of the network, with ordinary sockets, that measure what a
 * user of the guest would see. It runs in the client's network namespace and is steered by the lab.
 *
 * @module
 */
import { type Asked, serveChannel } from '../messages.ts';
import { type DatagramsRequest, type DatagramsResult, datagrams } from './datagrams.ts';
import { type PingRequest, type PingResult, ping } from './ping.ts';
import { type PulseRequest, type PulseResult, pulse } from './pulse.ts';
import { type SessionRequest, type SessionResult, Sessions } from './sessions.ts';
import { type ShortRequest, type ShortResult, shortConnections } from './short.ts';
import { type TextRequest, type TextResult, text } from './text.ts';
import { type TokensRequest, type TokensResult, tokens } from './tokens.ts';
import { type TransferRequest, type TransferResult, transfer } from './transfer.ts';

/** What the lab may ask of the clients, and what each answers. */
export interface ClientCalls {
  readonly transfer: { readonly request: TransferRequest; readonly result: TransferResult };
  readonly short: { readonly request: ShortRequest; readonly result: ShortResult };
  readonly datagrams: { readonly request: DatagramsRequest; readonly result: DatagramsResult };
  readonly ping: { readonly request: PingRequest; readonly result: PingResult };
  readonly pulse: { readonly request: PulseRequest; readonly result: PulseResult };
  readonly tokens: { readonly request: TokensRequest; readonly result: TokensResult };
  readonly text: { readonly request: TextRequest; readonly result: TextResult };
  readonly session: { readonly request: SessionRequest; readonly result: SessionResult };
}

export type ClientRequest = {
  [Name in keyof ClientCalls]: { readonly type: Name } & ClientCalls[Name]['request'];
}[keyof ClientCalls];
export type ClientResult = ClientCalls[keyof ClientCalls]['result'];

const sessions = new Sessions();

function carryOut(request: ClientRequest): Promise<ClientResult> {
  switch (request.type) {
    case 'transfer':
      return transfer(request);
    case 'short':
      return shortConnections(request);
    case 'datagrams':
      return datagrams(request);
    case 'ping':
      return ping(request);
    case 'pulse':
      return pulse(request);
    case 'tokens':
      return tokens(request);
    case 'text':
      return text(request);
    case 'session':
      return sessions.carryOut(request);
  }
}

serveChannel((request: Asked) => carryOut(request as Asked & ClientRequest));
