import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { ColoError } from '../base/error.ts';
import { parseConfig, readConfigFile } from './config.ts';
import { primaryConfig, resolveSettings, secondaryConfig } from './settings.ts';

const FULL = `
guest: packet:tap0
net: packet:eth0
peer: listen:192.0.2.1:9000
peer-key: /etc/colo-proxy/peer.key
peer-timeout: 500
compare-timeout: "150"
min-run: 50
pass: [tcp:3389, udp:123]
vm: exec:/usr/local/bin/checkpoint
control: /run/colo-proxy/primary.sock
log-level: warn
json: true
limits:
  flows-max: 1000
  held-bytes-max: 1048576
  retained-bytes-max: 4096
  checkpoint-request-timeout: 700
  checkpoint-request-tries: 2
`;

/** The lines of the error that `text` causes. */
function faults(text: string): string[] {
  try {
    parseConfig(text, 'c.yaml');
  } catch (error) {
    expect(error).toMatchObject({ code: 'COLO_ERR_CONFIG' });
    return (error as ColoError).message.split('\n');
  }
  throw new Error('no error');
}

describe('parseConfig()', () => {
  it('reads every key', () => {
    expect(parseConfig(FULL, 'c.yaml')).toEqual({
      guest: 'packet:tap0',
      net: 'packet:eth0',
      peer: { mode: 'listen', host: '192.0.2.1', port: 9000 },
      peerKey: '/etc/colo-proxy/peer.key',
      peerTimeoutUs: 500_000,
      compareTimeoutUs: 150_000,
      minRunUs: 50_000,
      pass: [
        { protocol: 6, port: 3389 },
        { protocol: 17, port: 123 },
      ],
      vm: { kind: 'exec', command: '/usr/local/bin/checkpoint' },
      control: '/run/colo-proxy/primary.sock',
      logLevel: 'warn',
      json: true,
      limits: {
        flowsMax: 1_000,
        heldBytesMax: 1_048_576,
        retainedBytesMax: 4_096,
        checkpointRequestTimeoutUs: 700_000,
        checkpointRequestTries: 2,
      },
    });
  });

  it('takes an empty file', () => {
    expect(parseConfig('', 'c.yaml')).toEqual({});
    expect(parseConfig('# nothing\n', 'c.yaml')).toEqual({});
  });

  it.each([
    ['guest: packet:a\npeer: nowhere', 'c.yaml:2: peer: Expected listen:HOST:PORT'],
    ['\n\ncompare-timeout: fast', 'c.yaml:3: compare-timeout: Expected whole milliseconds'],
    ['compare-timeout: 0', 'c.yaml:1: compare-timeout: Expected whole milliseconds'],
    ['compare-timeout: 1.5', 'c.yaml:1: compare-timeout: Expected whole milliseconds'],
    ['peer-timeout: 1', 'c.yaml:1: peer-timeout: Expected whole milliseconds, 20 to 600000'],
    ['guest: floppy:a', 'c.yaml:1: guest: Cannot use the port "floppy:a"'],
    ['net: eth0\ncompare-timout: 5', 'c.yaml:2: compare-timout: Unknown key'],
    ['limits:\n  flows-max: 10\n  flow-max: 1', 'c.yaml:3: limits.flow-max: Unknown key'],
    ['limits:\n  held-bytes-max: -1', 'c.yaml:2: limits.held-bytes-max: Expected a whole number'],
    ['limits: many', 'c.yaml:1: limits: Expected keys and values'],
    ['pass:\n  - tcp:80\n  - sctp:9', 'c.yaml:3: pass.1: Expected tcp:PORT or udp:PORT'],
    ['pass: tcp:80', 'c.yaml:1: pass: Expected a list such as [tcp:3389]'],
    ['json: "yes"', 'c.yaml:1: json: Expected true or false'],
    ['log-level: loud', 'c.yaml:1: log-level: Expected debug, info, warn, error, silent'],
    ['vm: [a]', 'c.yaml:1: vm: Expected a text or a number'],
    ['vm:', 'c.yaml:1: vm: Expected a text or a number'],
    ['- a', 'c.yaml:1: Expected keys and values'],
    ['guest: packet:a\nguest: packet:b', 'c.yaml:2: Map keys must be unique'],
    ['guest: "packet:a', 'c.yaml:1: Missing closing "quote'],
    ['a: &x 1\nb: *x', 'c.yaml:1: Aliases are not supported'],
  ])('names line and key: %j', (text, expected) => {
    expect(faults(text).some((line) => line.startsWith(expected))).toBe(true);
  });

  it('tells all faults at once', () => {
    expect(faults('min-run: x\nfoo: 1\nbar: 2\ncontrol: ""')).toHaveLength(4);
  });

  it('refuses what is no configuration by its size', () => {
    expect(faults(`# ${'x'.repeat(1024 * 1024)}`)[0]).toContain('larger than');
  });
});

describe('readConfigFile()', () => {
  it('reads a file, and says which one it cannot read', () => {
    const directory = mkdtempSync(join(tmpdir(), 'colo-config-'));
    writeFileSync(join(directory, 'c.yaml'), 'min-run: 7');
    expect(readConfigFile(join(directory, 'c.yaml'))).toEqual({ minRunUs: 7_000 });
    expect(() => readConfigFile(join(directory, 'd.yaml'))).toThrow(/d\.yaml: ENOENT$/);
    rmSync(directory, { recursive: true });
  });
});

const QUEUES = 'nfqueue:64,tap=tap0,bridge=br0';

describe('resolveSettings()', () => {
  const flags = {
    guest: 'packet:a',
    net: 'packet:b',
    peer: { mode: 'listen', host: 'h', port: 1 },
    peerInsecure: true,
  } as const;

  it('lays flags over the file', () => {
    const file = parseConfig(FULL, 'c.yaml');
    const settings = resolveSettings('primary', { guest: 'tap:x', compareTimeoutUs: 9_000 }, file);
    expect(settings.guest).toBe('tap:x');
    expect(settings.net).toBe('packet:eth0');
    expect(settings.peerSecurity).toEqual({ kind: 'psk', keyPath: '/etc/colo-proxy/peer.key' });
    expect(primaryConfig(settings)).toMatchObject({
      compareTimeoutUs: 9_000,
      minRunUs: 50_000,
      flowsMax: 1_000,
      heldBytesMax: 1_048_576,
      checkpointRequestTimeoutUs: 700_000,
      checkpointRequestTries: 2,
      passList: [
        { protocol: 6, port: 3389 },
        { protocol: 17, port: 123 },
      ],
    });
    expect(primaryConfig(settings)).not.toHaveProperty('retainedBytesMax');
    expect(secondaryConfig(settings)).toMatchObject({ flowsMax: 1_000, retainedBytesMax: 4_096 });
  });

  it('keeps the defaults of limits.ts for what nobody gave', () => {
    const config = primaryConfig(resolveSettings('primary', flags, undefined));
    expect(config).toMatchObject({ compareTimeoutUs: 200_000, minRunUs: 100_000, passList: [] });
  });

  it('gives every process its own hash key', () => {
    const key = () => primaryConfig(resolveSettings('primary', flags, undefined)).hashKey;
    expect(key()).not.toEqual(key());
  });

  it('packet queues are guest and network in one, on the primary only', () => {
    const { net: _net, ...others } = flags;
    const given = { ...others, guest: QUEUES };
    expect(resolveSettings('primary', given, undefined)).toMatchObject({
      guest: QUEUES,
      net: QUEUES,
    });
    expect(resolveSettings('primary', { ...given, net: QUEUES }, undefined).net).toBe(QUEUES);
    expect(() => resolveSettings('secondary', given, undefined)).toThrow('are for the primary');
  });

  it('a way of authentication by flag replaces that of the file', () => {
    const file = parseConfig(FULL, 'c.yaml');
    const settings = resolveSettings('primary', { peerInsecure: true }, file);
    expect(settings.peerSecurity).toEqual({ kind: 'insecure' });
  });

  it.each([
    [{ ...flags, guest: undefined }, 'Missing --guest PORT'],
    [{ ...flags, peer: undefined }, 'Missing --peer listen:HOST:PORT | connect:HOST:PORT'],
    [{ ...flags, net: 'packet:a' }, 'cannot be the same port'],
    [{ ...flags, guest: QUEUES, net: 'packet:a' }, 'leave --net out'],
    [{ ...flags, peerInsecure: undefined }, 'The peer link needs --peer-key FILE'],
    [{ ...flags, peerKey: '/k' }, 'Give one of --peer-key'],
    [{ ...flags, peerInsecure: undefined, peerCa: '/a' }, 'Certificates need all of'],
  ])('refuses %j', (given, text) => {
    const known = Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined));
    const fault = (file?: object) => {
      try {
        resolveSettings('primary', known, file);
      } catch (error) {
        return error as ColoError;
      }
      throw new Error('no error');
    };
    expect(fault().message).toContain(text);
    expect(fault().code).toBe('COLO_ERR_USAGE');
    expect(fault({}).code).toBe('COLO_ERR_CONFIG'); // there was a file: it is to blame
  });

  describe('with a forward device', () => {
    const raw = { guest: 'packet:a', net: 'packet:b', forwardDev: 'eth1' };

    it('has no peer and no security', () => {
      const settings = resolveSettings('primary', raw, undefined);
      expect(settings).toMatchObject({
        peer: undefined,
        forward: 'packet:eth1',
        peerSecurity: { kind: 'insecure' },
      });
      expect(primaryConfig(settings).reportsProgress).toBe(false);
      expect(primaryConfig(resolveSettings('primary', flags, undefined)).reportsProgress).toBe(
        true,
      );
    });

    it('replaces the peer of the file, and is replaced by a peer', () => {
      const withPeer = parseConfig(FULL, 'c.yaml');
      const { forward, peer } = resolveSettings('primary', { forwardDev: 'eth1' }, withPeer);
      expect({ forward, peer }).toEqual({ forward: 'packet:eth1', peer: undefined });
      const withRaw = parseConfig('guest: packet:a\nnet: packet:b\nforward-dev: eth1\n', 'c.yaml');
      expect(resolveSettings('primary', {}, withRaw).forward).toBe('packet:eth1');
      const { peer: given, peerInsecure } = flags;
      const replaced = resolveSettings('primary', { peer: given, peerInsecure }, withRaw);
      expect(replaced).toMatchObject({ forward: undefined, peer: given });
    });

    it.each([
      ['primary', { peer: flags.peer }, 'Give --peer or --forward-dev, not both'],
      ['primary', { peerKey: '/k' }, 'neither authentication nor encryption'],
      ['primary', { onPeerLoss: { kind: 'hold' } }, 'does not tell when the peer is lost'],
      ['primary', { forwardDev: 'b' }, 'cannot be another port of this node: packet:b'],
      ['primary', { forwardDev: 'a/b' }, 'cannot be the name of an interface'],
      ['secondary', {}, 'Nobody would tell this node of checkpoints'],
      ['secondary', { vm: { kind: 'exec', command: 'x' } }, 'Nobody would tell this node'],
    ] as const)('refuses for the %s: %j', (role, more, text) => {
      expect(() => resolveSettings(role, { ...raw, ...more }, undefined)).toThrow(text);
    });

    it('takes a secondary that is told of checkpoints', () => {
      const told = { ...raw, control: '/c' };
      expect(resolveSettings('secondary', told, undefined).forward).toBe('packet:eth1');
    });
  });

  it('refuses a port that cannot be, as a fault of the command line', () => {
    expect(() => resolveSettings('primary', { ...flags, net: 'floppy:a' }, undefined)).toThrow(
      expect.objectContaining({ code: 'COLO_ERR_PORT_SPEC' }),
    );
  });
});
