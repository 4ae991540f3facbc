import type { ComponentChildren } from "preact";
import { store, useStore } from "./store";

// The address is the only state of a view: whoever has the link sees the same.
const address = store(location.pathname + location.search);

addEventListener("popstate", () => address.set(location.pathname + location.search));

export function useAddress(): { path: string; query: URLSearchParams } {
  const [path = "/", query = ""] = useStore(address).split("?", 2);
  return { path, query: new URLSearchParams(query) };
}

/** Goes to another view; `replace` for what is no step of its own, such as a filter that is being typed. */
export function go(to: string, replace = false): void {
  if (to === address.get()) return;
  if (replace) history.replaceState(null, "", to);
  else {
    history.pushState(null, "", to);
    scrollTo(0, 0);
  }
  address.set(to);
}

/** The present address with some of its parameters changed; null or empty takes one out. */
export function withQuery(changes: Record<string, string | null>): string {
  const [path, query] = address.get().split("?", 2);
  const next = new URLSearchParams(query);
  for (const [name, value] of Object.entries(changes)) {
    if (value) next.set(name, value);
    else next.delete(name);
  }
  const text = next.toString();
  return text ? `${path}?${text}` : path ?? "/dashboard";
}

interface LinkProps {
  to: string;
  children: ComponentChildren;
  class?: string;
  title?: string;
  rel?: string;
  "aria-current"?: "page" | "true" | undefined;
}

/** A link that a click follows within the page, and that opens elsewhere as links do. */
export function Link({ to, children, ...rest }: LinkProps) {
  const follow = (event: MouseEvent) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(to);
  };
  return (
    <a href={to} onClick={follow} {...rest}>
      {children}
    </a>
  );
}

/** As `decodeURIComponent`; what is no encoding stands for itself, as an address may be typed wrong. */
export function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function sessionAddress(id: string): string {
  return `/dashboard/sessions/${encodeURIComponent(id)}`;
}
