/**
 * What stands for the editor in the rounds of `tests/faults`: the part of its API that the extension uses, without a
 * screen. What it would show a person goes to `person`; everything else does what the editor does, as far as the
 * extension can tell. `test/rig/editor.ts` is the real editor, which is too much for a machine that plays rounds.
 */
import { readFileSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import type { Pseudoterminal } from "vscode";

/** Who sits before this editor; answers questions by one of their buttons, or not at all. */
export interface Person {
  readonly folder: string;
  readonly settings: Readonly<Record<string, unknown>>;
  /** What the status bar says; empty: it shows nothing. */
  statusBar: string;
  answer(question: string, buttons: readonly string[]): Promise<string | undefined>;
}

export let person: Person;

export function sit(down: Person): void {
  person = down;
}

function say(kind: string, text: string): void {
  process.stdout.write(`${kind}: ${text}\n`);
}

export class Disposable {
  constructor(readonly dispose: () => unknown) {}
}

export class EventEmitter<T> {
  private readonly listeners = new Set<(event: T) => unknown>();

  readonly event = (listener: (event: T) => unknown): Disposable => {
    this.listeners.add(listener);
    return new Disposable(() => this.listeners.delete(listener));
  };

  fire(event: T): void {
    this.listeners.forEach((listener) => listener(event));
  }

  dispose(): void {
    this.listeners.clear();
  }
}

const never = new EventEmitter<never>().event;

export class Uri {
  readonly scheme = "file";

  private constructor(readonly fsPath: string) {}

  static file(path: string): Uri {
    return new Uri(path);
  }

  static parse(text: string): Uri {
    return new Uri(text);
  }

  static joinPath(uri: Uri, ...parts: string[]): Uri {
    return new Uri(join(uri.fsPath, ...parts));
  }

  get path(): string {
    return this.fsPath;
  }
}

type Rest = readonly (string | { readonly modal?: boolean; readonly detail?: string })[];

async function show(question: string, ...rest: Rest): Promise<string | undefined> {
  const buttons = rest.filter((part) => typeof part === "string");
  const answer = await person.answer(question, buttons);
  say("message", `${question} ${JSON.stringify(buttons)} -> ${answer ?? "nothing"}`);
  return answer;
}

const nothing = (): Promise<undefined> => Promise.resolve(undefined);

export const window = {
  createOutputChannel: () => {
    const level =
      (name: string) =>
      (text: string): void => {
        say(name, text);
      };
    return {
      debug: level("debug"),
      info: level("info"),
      warn: level("warn"),
      error: level("error"),
      show: () => undefined,
      dispose: () => undefined,
    };
  },
  createStatusBarItem: () => ({
    text: "",
    show(): void {
      person.statusBar = this.text;
    },
    hide: () => {
      person.statusBar = "";
    },
    dispose: () => undefined,
  }),
  createTreeView: () => ({ visible: false, onDidChangeVisibility: never, dispose: () => undefined }),
  createTerminal: ({ pty }: { readonly pty: Pseudoterminal }) => {
    pty.open(undefined);
    return { show: () => undefined, dispose: () => undefined };
  },
  onDidCloseTerminal: never,
  showInformationMessage: show,
  showWarningMessage: show,
  showErrorMessage: show,
  showInputBox: nothing,
  showQuickPick: nothing,
  showTextDocument: nothing,
  showWorkspaceFolderPick: nothing,
  withProgress: <T>(_: unknown, task: () => T): T => task(),
};

export const workspace = {
  isTrusted: true,
  textDocuments: [],
  get workspaceFolders() {
    return [{ uri: Uri.file(person.folder) }];
  },
  getWorkspaceFolder: () => workspace.workspaceFolders[0],
  getConfiguration: () => ({
    get: (name: string, fallback: unknown): unknown => person.settings[name] ?? fallback,
    inspect: (name: string) => ({ globalValue: person.settings[name] }),
  }),
  findFiles: (): Promise<Uri[]> =>
    Promise.resolve(
      readdirSync(person.folder)
        .filter((name) => name.endsWith("plan.toml"))
        .map((name) => Uri.file(join(person.folder, name))),
    ),
  openTextDocument: (uri: Uri) => Promise.resolve({ uri, getText: () => readFileSync(uri.fsPath, "utf8") }),
  asRelativePath: ({ fsPath }: Uri): string => basename(fsPath),
  fs: {
    readFile: ({ fsPath }: Uri) => Promise.resolve(readFileSync(fsPath)),
    stat: nothing,
    writeFile: nothing,
  },
  onDidChangeConfiguration: never,
  onDidChangeTextDocument: never,
  onDidCloseTextDocument: never,
  onDidGrantWorkspaceTrust: never,
  onDidOpenTextDocument: never,
};

const registered = new Map<string, (...args: unknown[]) => unknown>();

export const commands = {
  registerCommand: (name: string, action: (...args: unknown[]) => unknown): Disposable => {
    registered.set(name, action);
    return new Disposable(() => registered.delete(name));
  },
  /** The editor's own commands only change what is shown. */
  executeCommand: async (name: string, ...args: unknown[]): Promise<unknown> => await registered.get(name)?.(...args),
};

export const languages = {
  createDiagnosticCollection: () => ({
    set: () => undefined,
    delete: () => undefined,
    clear: () => undefined,
    dispose: () => undefined,
  }),
  match: () => 0,
};

export const env = { remoteName: undefined, clipboard: { writeText: nothing }, openExternal: nothing };
export const version = "none";
export const StatusBarAlignment = { Left: 1 };
export const ProgressLocation = { Window: 10 };
export const TerminalExitReason = { User: 3 };
export const TextEditorRevealType = { InCenterIfOutsideViewport: 2 };
export const TreeItemCollapsibleState = { None: 0, Collapsed: 1, Expanded: 2 };

/** Of what is only looked at, and nobody looks. */
class Shown {
  readonly isShown = false;
}

export {
  Shown as Diagnostic,
  Shown as Range,
  Shown as Selection,
  Shown as ThemeColor,
  Shown as ThemeIcon,
  Shown as TreeItem,
};

export class MarkdownString {
  appendMarkdown(): this {
    return this;
  }

  appendText(): this {
    return this;
  }
}
