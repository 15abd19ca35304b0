/**
 * X.509 certificates for the link's tests, made at run time (RFC 5280, DER by hand), so that no key
 * lies in the repository and none expires.
 *
 * @module
 */
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';

/** A certificate and its key, PEM; `keyObject` signs further ones. */
export interface TestCertificate {
  readonly cert: string;
  readonly key: string;
  readonly name: string;
  readonly keyObject: KeyObject;
}

function der(tag: number, ...contents: Uint8Array[]): Uint8Array {
  const body = Buffer.concat(contents);
  const length =
    body.length < 128
      ? [body.length]
      : body.length < 256
        ? [0x81, body.length]
        : [0x82, body.length >> 8, body.length & 0xff];
  return Buffer.concat([Uint8Array.of(tag, ...length), body]);
}

const sequence = (...contents: Uint8Array[]) => der(0x30, ...contents);
const bitString = (content: Uint8Array) => der(0x03, Uint8Array.of(0), content);
const oid = (...bytes: number[]) => der(0x06, Uint8Array.from(bytes));
const time = (text: string) => der(0x17, Buffer.from(text));

const ECDSA_WITH_SHA256 = sequence(oid(0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02));
const COMMON_NAME = oid(0x55, 0x04, 0x03);
const BASIC_CONSTRAINTS = oid(0x55, 0x1d, 0x13);
const SUBJECT_ALT_NAME = oid(0x55, 0x1d, 0x11);

const nameOf = (text: string) =>
  sequence(der(0x31, sequence(COMMON_NAME, der(0x0c, Buffer.from(text)))));

/** A certificate for `name`, signed by `issuer`; without one it signs itself and is an authority. */
export function createCertificate(name: string, issuer?: TestCertificate): TestCertificate {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  const extension =
    issuer === undefined
      ? sequence(
          BASIC_CONSTRAINTS,
          der(0x01, Uint8Array.of(0xff)),
          der(0x04, sequence(der(0x01, Uint8Array.of(0xff)))),
        )
      : sequence(SUBJECT_ALT_NAME, der(0x04, sequence(der(0x82, Buffer.from(name)))));
  const toBeSigned = sequence(
    der(0xa0, der(0x02, Uint8Array.of(2))),
    der(0x02, Uint8Array.of(issuer === undefined ? 1 : 2)),
    ECDSA_WITH_SHA256,
    nameOf(issuer?.name ?? name),
    sequence(time('200101000000Z'), time('491231235959Z')),
    nameOf(name),
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(extension)),
  );
  const signature = sign('sha256', toBeSigned, issuer?.keyObject ?? privateKey);
  const whole = Buffer.from(sequence(toBeSigned, ECDSA_WITH_SHA256, bitString(signature)));
  const lines = whole
    .toString('base64')
    .match(/.{1,64}/g)!
    .join('\n');
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    name,
    keyObject: privateKey,
  };
}
