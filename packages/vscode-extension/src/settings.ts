/** The extension's settings, read anew each time they are asked for. */
import * as vscode from "vscode";

export const SECTION = "claudeProjects";

export type LeftBehind = "ask" | "continue" | "leave";

export interface Settings {
  readonly apiUrl: string;
  readonly heartbeatMs: number;
  readonly requestTimeoutMs: number;
  readonly refreshMs: number;
  readonly leftBehind: LeftBehind;
  readonly planFiles: string;
  /** Empty: the machine's own name. */
  readonly machineId: string;
}

export function settings(): Settings {
  const section = vscode.workspace.getConfiguration(SECTION);
  const text = (name: string): string => section.get<string>(name, "").trim();
  const milliseconds = (name: string, fallback: number, least: number): number => {
    const seconds = section.get<number>(name, fallback);
    return Math.max(Number.isFinite(seconds) ? seconds : fallback, least) * 1_000;
  };
  return {
    apiUrl: addressFrom(section.inspect<string>("apiUrl")),
    heartbeatMs: milliseconds("heartbeatIntervalSeconds", 60, 0.2),
    requestTimeoutMs: milliseconds("requestTimeoutSeconds", 10, 1),
    refreshMs: milliseconds("refreshIntervalSeconds", 10, 1),
    leftBehind: section.get<LeftBehind>("leftBehind", "ask"),
    planFiles: text("planFiles"),
    machineId: text("machineId"),
  };
}

/** The address that was set; else the environment's, as for the command line; else the default. */
function addressFrom(address: { defaultValue?: string; globalValue?: string } | undefined): string {
  return address?.globalValue?.trim() || process.env["CLAUDE_PROJECTS_URL"]?.trim() || (address?.defaultValue ?? "");
}
