import { useEffect, useReducer } from "preact/hooks";

/** A value that components can watch. */
export interface Store<T> {
  get(): T;
  set(value: T): void;
  watch(listener: () => void): () => void;
}

export function store<T>(value: T): Store<T> {
  const listeners = new Set<() => void>();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const listener of [...listeners]) listener();
    },
    watch(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** The value of a store, rendering again when it changes. */
export function useStore<T>(watched: Store<T>): T {
  const [, again] = useReducer((n: number) => n + 1, 0);
  useEffect(() => watched.watch(() => again(0)), [watched]);
  return watched.get();
}
