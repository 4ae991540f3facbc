/**
 * The terminal in which a person watches an orchestration. Ctrl+C interrupts the task, and so does closing the
 * terminal; a new one takes its place when it is to be shown again.
 */
import * as vscode from "vscode";

/** What is kept for a terminal that is not open, in pieces of output: the end of it is what a person looks for. */
const BACKLOG = 2_000;

export class OrchestrationTerminal implements vscode.Disposable {
  private readonly written = new vscode.EventEmitter<string>();
  private readonly interrupted = new vscode.EventEmitter<void>();
  private readonly closed = new vscode.EventEmitter<void>();
  private terminal: vscode.Terminal | undefined;
  /** What was written while no terminal was open: a pseudoterminal drops it. */
  private backlog: string[] | undefined = [];

  readonly onDidInterrupt = this.interrupted.event;
  /** A person closed it; that the whole window closes is told by other means. */
  readonly onDidClose = this.closed.event;

  private readonly closing = vscode.window.onDidCloseTerminal((terminal) => {
    if (terminal === this.terminal) {
      this.terminal = undefined;
      this.backlog = [];
      if (terminal.exitStatus?.reason === vscode.TerminalExitReason.User) {
        this.closed.fire();
      }
    }
  });

  constructor(private readonly title: string) {
    this.terminal = this.open();
  }

  show(preserveFocus = true): void {
    this.terminal ??= this.open();
    this.terminal.show(preserveFocus);
  }

  /** Output as it comes: a bare line feed would only move the cursor down. */
  write(text: string): void {
    const screen = text.replace(/\r?\n/g, "\r\n");
    if (this.backlog === undefined) {
      this.written.fire(screen);
      return;
    }
    this.backlog.push(screen);
    if (this.backlog.length > BACKLOG) {
      this.backlog.shift();
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
    this.closing.dispose();
    this.terminal?.dispose();
    [this.written, this.interrupted, this.closed].forEach((emitter) => {
      emitter.dispose();
    });
  }

  private open(): vscode.Terminal {
    return vscode.window.createTerminal({
      name: this.title,
      iconPath: new vscode.ThemeIcon("run-all"),
      isTransient: true,
      pty: {
        onDidWrite: this.written.event,
        open: () => {
          const backlog = this.backlog ?? [];
          this.backlog = undefined;
          backlog.forEach((text) => {
            this.written.fire(text);
          });
        },
        // `onDidCloseTerminal` says why, which this does not.
        close: () => undefined,
        handleInput: (data: string) => {
          if (data.includes("\u0003")) {
            this.written.fire("^C\r\n");
            this.interrupted.fire();
          }
        },
      },
    });
  }
}
