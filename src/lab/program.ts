/**
 * Where the files of this program are, so that the lab can start them as other processes.
 *
 * @module
 */
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('.', import.meta.url));

/** Path of a module beside this one, without its extension: `guest/main`. */
export function labModule(name: string): string {
  return join(here, `${name}${extname(fileURLToPath(import.meta.url))}`);
}

/** Path of the command line tool's script. */
export const COLO_PROXY_SCRIPT = join(here, '../../bin/colo-proxy.js');
