/**
 * The text protocol of QEMU's colo-compare `notify_dev`, which Xen's libxl speaks when the proxy is in user space.
 *
 *     u32 length, big-endian | `length` bytes of text, not terminated
 *
 * Sources: net/colo-compare.c of QEMU (notify_remote_frame, colo_compare_packet_payload), and
 * tools/libs/light/libxl_colo_proxy.c of Xen, which is the client.
 *
 * @module
 */

/** VM layer to proxy, right after the connection. It waits 500 ms for any frame as an answer. */
export const NOTIFY_INIT = 'COLO_USERSPACE_PROXY_INIT';
/** Proxy to VM layer: the answer to NOTIFY_INIT. */
export const NOTIFY_INIT_ANSWER = 'COLO_COMPARE_GET_XEN_INIT';
/** VM layer to proxy: both guests are paused and the state is copied; release the primary's output. */
export const NOTIFY_CHECKPOINT = 'COLO_CHECKPOINT';
/** Proxy to VM layer: the outputs differ, please checkpoint. */
export const NOTIFY_DO_CHECKPOINT = 'DO_CHECKPOINT';

/** Longest text taken or sent, bytes: libxl reads into a buffer of 1024 without looking at the length. */
export const NOTIFY_TEXT_BYTES_MAX = 1023;

const LENGTH_BYTES = 4;

/**
 * A frame, ready to be sent in one write (libxl reads length and text with one recv() each and does not
 * go on after a short one).
 *
 * @throws RangeError when the text is empty, longer than NOTIFY_TEXT_BYTES_MAX, or not ASCII
 */
export function encodeNotify(text: string): Uint8Array {
  if (text.length === 0 || text.length > NOTIFY_TEXT_BYTES_MAX) {
    throw new RangeError(`text must have 1 to ${NOTIFY_TEXT_BYTES_MAX} bytes`);
  }
  const bytes = new Uint8Array(LENGTH_BYTES + text.length);
  new DataView(bytes.buffer).setUint32(0, text.length, false);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code > 0x7f) throw new RangeError('text must be ASCII');
    bytes[LENGTH_BYTES + i] = code;
  }
  return bytes;
}

/** What a chunk of the stream has brought. */
export interface NotifyChunk {
  /** Texts in their order, one character per byte, without the NULs that some peers put at the end. */
  readonly texts: readonly string[];
  /** The stream is broken for good: a length that no frame may have. */
  readonly brokenLength: number | undefined;
}

/** Cuts a byte stream into frames; holds at most one frame. */
export class NotifyDecoder {
  #held = new Uint8Array(0);
  #brokenLength: number | undefined;

  /** Takes the next bytes, borrowed for this call only. After a broken length everything is ignored. */
  push(chunk: Uint8Array): NotifyChunk {
    const texts: string[] = [];
    if (this.#brokenLength !== undefined) return { texts, brokenLength: this.#brokenLength };
    const bytes = new Uint8Array(this.#held.length + chunk.length);
    bytes.set(this.#held);
    bytes.set(chunk, this.#held.length);
    const view = new DataView(bytes.buffer);
    let at = 0;
    while (bytes.length - at >= LENGTH_BYTES) {
      const length = view.getUint32(at, false);
      if (length > NOTIFY_TEXT_BYTES_MAX) {
        this.#brokenLength = length;
        break;
      }
      if (bytes.length - at - LENGTH_BYTES < length) break;
      texts.push(textOf(bytes, at + LENGTH_BYTES, length));
      at += LENGTH_BYTES + length;
    }
    this.#held = this.#brokenLength === undefined ? bytes.slice(at) : new Uint8Array(0);
    return { texts, brokenLength: this.#brokenLength };
  }
}

/** Latin-1, so that every byte stays visible in a log; up to the first NUL of a run of NULs at the end. */
function textOf(bytes: Uint8Array, offset: number, length: number): string {
  let end = offset + length;
  while (end > offset && bytes[end - 1] === 0) end--;
  let text = '';
  for (let i = offset; i < end; i++) text += String.fromCharCode(bytes[i]!);
  return text;
}
