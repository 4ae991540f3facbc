/** How states and durations are said, in one place. */
export function statusWord(status: string): string {
  return status.replace("_", " ");
}

/** A duration in the largest unit that fits: people compare these at a glance. */
export function duration(milliseconds: number): string {
  const seconds = Math.max(0, Math.round(milliseconds / 1_000));
  if (seconds < 60) {
    return `${String(seconds)} s`;
  }
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) {
    return `${String(minutes)} min`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${String(hours)} h` : `${String(Math.floor(hours / 24))} d`;
}

export function since(moment: Date | string, now = Date.now()): string {
  return duration(now - new Date(moment).getTime());
}
