/**
 * Copies plain data deeply: what a checkpoint does to a guest's memory. Guest state in the simulation
 * consists of nothing but objects, arrays, Maps, Sets, byte arrays and primitives, so that a copy is complete.
 *
 * @module
 */
import { assert } from '../base/assert.ts';

/** A copy that shares nothing with `value`. */
export function cloneDeep<T>(value: T): T {
  return copy(value) as T;
}

function copy(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) {
    assert(typeof value !== 'function', 'sim: state to be cloned holds a function');
    return value;
  }
  if (value instanceof Uint8Array) return value.slice();
  if (Array.isArray(value)) return value.map(copy);
  if (value instanceof Map) {
    const result = new Map<unknown, unknown>();
    for (const [key, item] of value) result.set(key, copy(item));
    return result;
  }
  if (value instanceof Set) return new Set(value);
  assert(Object.getPrototypeOf(value) === Object.prototype, 'sim: state to be cloned has a class');
  const result: Record<string, unknown> = {};
  for (const key of Object.keys(value)) {
    result[key] = copy((value as Record<string, unknown>)[key]);
  }
  return result;
}
