/**
 * Where the files of this program are, so that the lab can start them as other processes.
 *
 * @module
 */
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('.', import.meta.url));

/**
 * Path of a module beside this one, without its extension: `guest/main`. Run from source (as tests do), it is
 * the built one, because Node 20 cannot start a TypeScript file.
 */
export function labModule(name: string): string {
  const isSource = extname(fileURLToPath(import.meta.url)) === '.ts';
  return join(here, isSource ? '../../dist/lab' : '.', `${name}.js`);
}

/** Path of the command line tool's script. */
export const COLO_PROXY_SCRIPT = join(here, '../../bin/colo-proxy.js');
