/** How states are shown, in one place. */
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
