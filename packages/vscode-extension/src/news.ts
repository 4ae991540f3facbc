/** Notifications: only for what needs a person. */
import * as vscode from "vscode";
import type { ApiError } from "./api/client.js";
import type { Orchestrations } from "./orchestration/orchestrations.js";

export function announceNews(orchestrations: Orchestrations, askForKey: (error: ApiError) => void): vscode.Disposable {
  orchestrations.on("unauthorized", askForKey);

  orchestrations.on("deleted", ({ run }) => {
    void offer(
      vscode.window.showWarningMessage(
        `The session of “${run.title}” was deleted from the API. The work goes on, but nobody can see or recover it.`,
        "Show Log",
      ),
    );
  });

  orchestrations.on("held", ({ run }, reason) => {
    void vscode.window.showWarningMessage(`“${run.title}” is paused: ${reason}. Resume it when that is over.`);
  });

  orchestrations.on("ended", (orchestration, state) => {
    const { run, reason } = orchestration;
    if (state === "replaced") {
      void offer(
        vscode.window.showWarningMessage(
          `“${run.title}” was stopped in this window, because the work goes on elsewhere: ${reason}`,
          "Show Log",
          "Open Dashboard",
        ),
      );
    }
    if (state !== "failed") {
      return;
    }
    const [summary = reason] = reason.split("\n", 1);
    const tryAgain = "Try Again";
    void (async () => {
      const answer = await vscode.window.showErrorMessage(
        `“${run.title}” failed: ${summary}`,
        ...(run.sessionId === undefined ? [] : [tryAgain]),
        "Show Output",
      );
      if (answer === tryAgain) {
        await vscode.commands.executeCommand("claudeProjects.recover", run.sessionId);
      } else if (answer !== undefined) {
        await vscode.commands.executeCommand("claudeProjects.showTaskOutput", { kind: "local", orchestration });
      }
    })();
  });

  return new vscode.Disposable(() => orchestrations.removeAllListeners());
}

async function offer(message: Thenable<string | undefined>): Promise<void> {
  const answer = await message;
  if (answer === "Show Log") {
    await vscode.commands.executeCommand("claudeProjects.showLog");
  } else if (answer === "Open Dashboard") {
    await vscode.commands.executeCommand("claudeProjects.openDashboard");
  }
}
