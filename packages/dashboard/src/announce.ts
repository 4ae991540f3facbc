import { store } from "./store";

/** What a screen reader is told when something important has changed on its own. */
export const announcement = store("");

export function announce(text: string): void {
  announcement.set(text);
}
