/**
 * Connections between clients and the PVM that are older than the run, with streams far beyond 4 GiB: positions no longer fit in 32
 * bits.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { adoptStream } from './checkers/record.ts';
import type { HostState } from './host/host.ts';
import { SERVICE_PORT } from './host/service.ts';
import { createConnection, type TcpConnection } from './tcp/connection.ts';
import { joinOld } from './tcp/join-old.ts';
import { drawPlan } from './workload.ts';
import type { World } from './world.ts';

/** Puts them in place, before anything happens. */
export function openOldConnections(world: World): void {
  const prng = world.prng.fork();
  const { oldConnections } = world.options.workload;
  const guest = world.pvm.host.state;
  for (let i = 0; i < oldConnections; i++) {
    world.marks.hit('connection older than the run');
    const client = prng.pick(world.clients);
    const ports = { client: 30_000 + i, guest: SERVICE_PORT };
    const own = oldConnection(prng, client.host.state.tcp, {
      local: client.host.state.ip4,
      remote: guest.ip4,
      localPort: ports.client,
      remotePort: ports.guest,
    });
    const guests = oldConnection(prng, world.options.guestTcp, {
      local: guest.ip4,
      remote: client.host.state.ip4,
      localPort: ports.guest,
      remotePort: ports.client,
    });
    joinOld(own, guests);
    joinOld(guests, own);
    const clientKey = `${guest.ip4}:${ports.guest}:${ports.client}`;
    const guestKey = `${client.host.state.ip4}:${ports.client}:${ports.guest}`;
    client.host.state.connections.set(clientKey, own);
    guest.connections.set(guestKey, guests);
    adoptStream(world.recordOf(world.pvm), guestKey, guests);
    client.application.adopt(client.host, clientKey, drawPlan(prng, world.options.workload));
    client.host.state.application.deadlineUs = 0;
    client.reschedule();
  }
}

function oldConnection(
  prng: Prng,
  tcp: HostState['tcp'],
  addresses: Parameters<typeof createConnection>[1],
): TcpConnection {
  const connection = createConnection(tcp, addresses, 'established', prng);
  // Just below, at or beyond a multiple of 2^32.
  const position = prng.nextBetween(1, 3) * 0x1_0000_0000 - prng.nextBelow(30_000);
  connection.sndUna = position;
  connection.sndNxt = position;
  connection.sndMax = position;
  connection.sendBase = position;
  return connection;
}
