/**
 * Who may be the peer: a pre-shared key, certificates, or (only when asked for by name) anybody.
 * Both authenticated kinds are TLS 1.3 with TLS_AES_128_GCM_SHA256 and ephemeral keys (RFC 8446 §2.2, psk_dhe_ke).
 *
 * Key material stays inside the option objects that go to node:tls; no text or error names any of it.
 *
 * @module
 */
import { constants as cryptoConstants, hkdfSync } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import {
  type ConnectionOptions,
  checkServerIdentity,
  createSecureContext,
  type PeerCertificate,
  type TLSSocket,
  type TlsOptions,
} from 'node:tls';
import { ColoError } from '../base/error.ts';
import type { Role } from '../env/messages.ts';

/** Shortest key: 256 bits if it is random. */
const PEER_KEY_BYTES_MIN = 32;

/** A key file larger than this is some other file. */
const PEER_KEY_BYTES_MAX = 4_096;

/** PEM files larger than this are some other file. */
const PEM_BYTES_MAX = 1024 * 1024;

/** Separates this use of the key from any other; the protocol's version is checked in the hello. */
const KEY_PURPOSE = 'colo-proxy peer link';

/** How the operator wants the link to be secured: exactly one of the three. */
export type LinkSecurityOptions =
  | { readonly kind: 'key'; readonly keyFile: string }
  | {
      readonly kind: 'certificate';
      readonly caFile: string;
      readonly certFile: string;
      readonly privateKeyFile: string;
      /**
       * Name that the peer's certificate must carry (subjectAltName). Without it every certificate of
       * that authority is the peer, so the authority should sign for this pair only.
       */
      readonly peerName?: string;
    }
  | { readonly kind: 'insecure' };

/** Loaded security: the options for node:tls, `undefined` for plain TCP. */
export interface LinkSecurity {
  readonly name: 'tls-psk' | 'tls-certificate' | 'insecure';
  readonly tls: { readonly server: TlsOptions; readonly client: ConnectionOptions } | undefined;
  /** A further look at a peer after the handshake: why it is refused, or `undefined`. */
  checkPeer(socket: TLSSocket): string | undefined;
}

const TLS_OPTIONS = {
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
  ciphers: 'TLS_AES_128_GCM_SHA256',
  // Each connection authenticates anew; session tickets would only be a second way in.
  secureOptions: cryptoConstants.SSL_OP_NO_TICKET,
} as const;

/**
 * Reads the files and builds the TLS options for a node of this role.
 *
 * @throws ColoError `COLO_ERR_PEER_KEY_READ`, `_MODE`, `_SIZE`, `COLO_ERR_PEER_CERTIFICATE`
 */
export function loadLinkSecurity(options: LinkSecurityOptions, role: Role): LinkSecurity {
  switch (options.kind) {
    case 'insecure':
      return { name: 'insecure', tls: undefined, checkPeer: () => undefined };
    case 'key':
      return createPskSecurity(readPeerKey(options.keyFile), role);
    case 'certificate':
      return createCertificateSecurity(options);
  }
}

function createPskSecurity(psk: Uint8Array, role: Role): LinkSecurity {
  const identityOf = (node: Role) => `colo-proxy:${node}`;
  const peerIdentity = identityOf(role === 'primary' ? 'secondary' : 'primary');
  const server: TlsOptions = {
    ...TLS_OPTIONS,
    pskCallback: (_socket, identity) => (identity === peerIdentity ? psk : null),
  };
  const client: ConnectionOptions = {
    ...TLS_OPTIONS,
    pskCallback: () => ({ psk, identity: identityOf(role) }),
    // No authority is trusted: a server that answers with a certificate instead of the key is refused.
    ca: [],
    rejectUnauthorized: true,
    // With a pre-shared key there is no certificate whose name could be checked.
    checkServerIdentity: () => undefined,
  };
  return {
    name: 'tls-psk',
    tls: { server, client },
    checkPeer: (socket) => {
      // OpenSSL reports an external PSK as a reused session; anything else was authenticated in another way.
      const hasCertificate = Object.keys(socket.getPeerCertificate() ?? {}).length > 0;
      return !hasCertificate && socket.isSessionReused()
        ? undefined
        : 'not authenticated by the key';
    },
  };
}

function createCertificateSecurity(
  options: Extract<LinkSecurityOptions, { kind: 'certificate' }>,
): LinkSecurity {
  const material = {
    ca: readPem(options.caFile, false),
    cert: readPem(options.certFile, false),
    key: readPem(options.privateKeyFile, true),
  };
  try {
    createSecureContext(material);
  } catch (cause) {
    throw new ColoError(
      'COLO_ERR_PEER_CERTIFICATE',
      `Cannot use the peer certificate ${options.certFile}: it, its private key and the authority do not fit together or are not PEM`,
      { cause, path: options.certFile },
    );
  }
  const { peerName } = options;
  const checkName = (certificate: PeerCertificate): Error | undefined =>
    peerName === undefined ? undefined : checkServerIdentity(peerName, certificate);
  const both = { ...TLS_OPTIONS, ...material, rejectUnauthorized: true };
  return {
    name: 'tls-certificate',
    tls: {
      server: { ...both, requestCert: true },
      client: { ...both, checkServerIdentity: (_host, certificate) => checkName(certificate) },
    },
    checkPeer: (socket) => {
      if (!socket.authorized) return 'certificate not trusted';
      return checkName(socket.getPeerCertificate())?.message;
    },
  };
}

/**
 * The TLS pre-shared key from a key file. Derived (HKDF-SHA-256, RFC 5869), because TLS libraries limit the length of a
 * key and an operator's file may be longer.
 */
function readPeerKey(path: string): Uint8Array {
  const file = readSecret(path, PEER_KEY_BYTES_MAX, 'the peer key');
  const bytes = file.at(-1) === 0x0a ? file.length - 1 : file.length;
  if (bytes < PEER_KEY_BYTES_MIN) {
    throw new ColoError(
      'COLO_ERR_PEER_KEY_SIZE',
      `Cannot use the peer key ${path}: ${bytes} bytes, at least ${PEER_KEY_BYTES_MIN} are needed; ` +
        `make one with: head -c 32 /dev/urandom | base64 -w 0 > ${path}`,
      { path },
    );
  }
  const key = hkdfSync('sha256', file.subarray(0, bytes), '', KEY_PURPOSE, 32);
  file.fill(0);
  return new Uint8Array(key);
}

function readPem(path: string, isSecret: boolean): Buffer {
  if (isSecret) return readSecret(path, PEM_BYTES_MAX, 'the private key of the peer certificate');
  try {
    return readFileSync(path);
  } catch (cause) {
    throw readError(path, 'the peer certificate file', cause);
  }
}

/** Reads a file that only its owner may read; owner and mode are checked on the open file, not on its name. */
function readSecret(path: string, bytesMax: number, what: string): Buffer {
  let descriptor: number;
  try {
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (cause) {
    throw readError(path, what, cause);
  }
  try {
    const status = fstatSync(descriptor);
    if (!status.isFile()) {
      throw new ColoError('COLO_ERR_PEER_KEY_READ', `Cannot read ${what} ${path}: not a file`, {
        path,
      });
    }
    if ((status.mode & 0o077) !== 0) {
      throw new ColoError(
        'COLO_ERR_PEER_KEY_MODE',
        `Cannot use ${what} ${path}: others can read it; run: chmod 600 ${path}`,
        { path },
      );
    }
    if (status.size > bytesMax) {
      throw new ColoError(
        'COLO_ERR_PEER_KEY_SIZE',
        `Cannot use ${what} ${path}: ${status.size} bytes, at most ${bytesMax} are expected`,
        { path },
      );
    }
    return readFileSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function readError(path: string, what: string, cause: unknown): ColoError {
  const errno = errorCode(cause);
  return new ColoError('COLO_ERR_PEER_KEY_READ', `Cannot read ${what} ${path}: ${errno}`, {
    cause,
    errno,
    path,
  });
}

/** The `code` of a Node error, or its name. */
export function errorCode(error: unknown): string {
  if (!(error instanceof Error)) return 'unknown';
  return 'code' in error && typeof error.code === 'string' ? error.code : error.name;
}

/**
 * What a failed handshake is counted as, by the error's code. The names are OpenSSL's
 * (`ERR_SSL_` and the reason in capitals); where both ends see the same cause they have the same name.
 */
export function tlsFailureReason(error: unknown): string {
  switch (errorCode(error)) {
    case 'ERR_SSL_BINDER_DOES_NOT_VERIFY':
    // The other end of the same: the alert that RFC 8446 §4.2.11.2 has no better name for.
    case 'ERR_SSL_SSLV3_ALERT_ILLEGAL_PARAMETER':
    case 'ERR_SSL_TLSV1_ALERT_DECRYPT_ERROR':
      return 'wrong-key';
    // No identity that we know and no certificate to fall back to; the second is the other end's alert.
    case 'ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM':
    case 'ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE':
    case 'ERR_SSL_NO_SHARED_CIPHER':
      return 'no-key';
    case 'ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE':
    case 'ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED':
      return 'no-certificate';
    case 'ERR_SSL_UNSUPPORTED_PROTOCOL':
    case 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION':
      return 'tls-version';
    case 'ERR_SSL_WRONG_VERSION_NUMBER':
    case 'ERR_SSL_HTTP_REQUEST':
    case 'ERR_SSL_HTTPS_PROXY_REQUEST':
    case 'ERR_SSL_PACKET_LENGTH_TOO_LONG':
    case 'ERR_SSL_UNEXPECTED_MESSAGE':
      return 'not-tls';
    case 'ECONNRESET':
    case 'EPIPE':
      return 'tls-incomplete';
    case 'SELF_SIGNED_CERT_IN_CHAIN':
    case 'DEPTH_ZERO_SELF_SIGNED_CERT':
    case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
    case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
    case 'CERT_HAS_EXPIRED':
    case 'ERR_TLS_CERT_ALTNAME_INVALID':
      return 'untrusted-certificate';
    default:
      return 'tls-failed';
  }
}
