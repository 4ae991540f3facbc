/** How states and durations are said and shown, in one place. */
import * as vscode from "vscode";

const STATUS_ICONS: Readonly<Record<string, readonly [icon: string, color?: string]>> = {
  active: ["pulse", "charts.green"],
  paused: ["debug-pause", "charts.yellow"],
  stalled: ["warning", "list.warningForeground"],
  completed: ["pass", "testing.iconPassed"],
  failed: ["error", "testing.iconFailed"],
  pending: ["circle-outline"],
  in_progress: ["sync~spin", "charts.blue"],
  blocked: ["circle-slash", "charts.yellow"],
  online: ["vm-active", "charts.green"],
  offline: ["vm-outline", "disabledForeground"],
  maintenance: ["tools", "charts.yellow"],
};

export function statusIcon(status: string): vscode.ThemeIcon {
  const [icon, color] = STATUS_ICONS[status] ?? ["question"];
  return new vscode.ThemeIcon(icon, color === undefined ? undefined : new vscode.ThemeColor(color));
}

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
