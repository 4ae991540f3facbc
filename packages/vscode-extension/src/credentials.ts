/** The API key: the environment's where there is one, else the one in the editor's secret storage. Never in a log. */
import * as vscode from "vscode";

const SECRET = "apiKey";
const VARIABLE = "CLAUDE_PROJECTS_API_KEY";
const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/i;

export class Credentials {
  constructor(private readonly secrets: vscode.SecretStorage) {}

  /** Fires when the stored key has become another one, in this window or any other. */
  readonly onDidChange: vscode.Event<void> = (listener, thisArgs, disposables) =>
    this.secrets.onDidChange(
      (event) => {
        if (event.key === SECRET) {
          listener.call(thisArgs);
        }
      },
      undefined,
      disposables,
    );

  async key(): Promise<string | undefined> {
    const key = process.env[VARIABLE]?.trim() || (await this.secrets.get(SECRET));
    return key === "" ? undefined : key;
  }

  /** Asks for the key and keeps it; false where the person thought better of it. */
  async ask(): Promise<boolean> {
    if (process.env[VARIABLE]?.trim()) {
      void vscode.window.showInformationMessage(
        `The environment variable ${VARIABLE} is set and wins over a stored key. Unset it to use one from here.`,
      );
      return false;
    }
    const key = await vscode.window.showInputBox({
      title: "API Key of the State Tracking API",
      prompt: "It is kept in the editor's secret storage. Leave it empty to remove the stored key.",
      placeHolder: "xxxxxxxx-xxxx-4xxx-xxxx-xxxxxxxxxxxx",
      password: true,
      ignoreFocusOut: true,
      validateInput: (value) =>
        value.trim() === "" || UUID_V4.test(value.trim()) ? undefined : "A key is a UUID of version 4, 36 characters.",
    });
    if (key === undefined) {
      return false;
    }
    if (key.trim() === "") {
      await this.secrets.delete(SECRET);
    } else {
      await this.secrets.store(SECRET, key.trim());
    }
    return true;
  }
}
