/** The terminal in which a person watches an orchestration. Ctrl+C interrupts the task; closing it pauses the plan. */
import * as vscode from "vscode";

export class OrchestrationTerminal implements vscode.Disposable {
  private readonly written = new vscode.EventEmitter<string>();
  private readonly named = new vscode.EventEmitter<string>();
  private readonly interrupted = new vscode.EventEmitter<void>();
  private readonly closed = new vscode.EventEmitter<void>();
  private readonly terminal: vscode.Terminal;
  /** What was written before the terminal opened: a pseudoterminal drops it. */
  private backlog: string[] | undefined = [];

  readonly onDidInterrupt = this.interrupted.event;
  readonly onDidClose = this.closed.event;

  constructor(title: string) {
    this.terminal = vscode.window.createTerminal({
      name: title,
      iconPath: new vscode.ThemeIcon("run-all"),
      isTransient: true,
      pty: {
        onDidWrite: this.written.event,
        onDidChangeName: this.named.event,
        open: () => {
          const backlog = this.backlog ?? [];
          this.backlog = undefined;
          backlog.forEach((text) => {
            this.written.fire(text);
          });
        },
        close: () => {
          this.closed.fire();
        },
        handleInput: (data: string) => {
          if (data.includes("\u0003")) {
            this.written.fire("^C\r\n");
            this.interrupted.fire();
          }
        },
      },
    });
  }

  show(preserveFocus = true): void {
    this.terminal.show(preserveFocus);
  }

  /** Output as it comes: a bare line feed would only move the cursor down. */
  write(text: string): void {
    const screen = text.replace(/\r?\n/g, "\r\n");
    if (this.backlog === undefined) {
      this.written.fire(screen);
    } else {
      this.backlog.push(screen);
    }
  }

  /** A line of ours between the commands' output, in bold. */
  heading(text: string): void {
    this.write(`\u001b[1m${text}\u001b[0m\n`);
  }

  note(text: string): void {
    this.write(`\u001b[2m${text}\u001b[0m\n`);
  }

  failure(text: string): void {
    this.write(`\u001b[31m${text}\u001b[0m\n`);
  }

  dispose(): void {
    this.terminal.dispose();
    [this.written, this.named, this.interrupted, this.closed].forEach((emitter) => {
      emitter.dispose();
    });
  }
}
