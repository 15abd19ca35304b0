/**
 * Opening sockets in another network namespace: a socket belongs for life to the namespace that its
 * thread was in when it was made.
 *
 * @module
 */
import { CLONE_NEWNET, O_CLOEXEC, O_RDONLY } from './constants.ts';
import { checkResult, close, open, setns } from './libc.ts';

const OWN_NAMESPACE = '/proc/thread-self/ns/net';

/**
 * Runs `body`, which must be synchronous, with this thread in the network namespace of `path`
 * (`/run/netns/NAME`, `/proc/PID/ns/net`), and comes back.
 *
 * @throws ColoError COLO_ERR_NETNS; needs CAP_SYS_ADMIN
 */
export function inNetworkNamespace<T>(path: string, body: () => T): T {
  const own = openNamespace(OWN_NAMESPACE);
  try {
    const other = openNamespace(path);
    try {
      enterNamespace(other, path);
    } finally {
      close(other);
    }
    try {
      return body();
    } finally {
      enterNamespace(own, OWN_NAMESPACE);
    }
  } finally {
    close(own);
  }
}

function openNamespace(path: string): number {
  const action = `Cannot open the network namespace ${path}`;
  return checkResult(open(path, O_RDONLY | O_CLOEXEC, 0), {
    code: 'COLO_ERR_NETNS',
    syscall: 'open',
    action,
    path,
  });
}

function enterNamespace(fd: number, path: string): void {
  const action = `Cannot enter the network namespace ${path}`;
  checkResult(setns(fd, CLONE_NEWNET), {
    code: 'COLO_ERR_NETNS',
    syscall: 'setns',
    action,
    path,
  });
}
