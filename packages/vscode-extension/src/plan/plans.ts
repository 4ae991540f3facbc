/** The plan files of the workspace: finding them, and marking what is wrong in them while they are edited. */
import * as vscode from "vscode";
import { type Plan, type Problem, type Reading, readPlan } from "./plan.js";

const EXCLUDED = "**/{node_modules,.venv,.git,dist,out}/**";
/** More than anybody picks from. */
const MOST = 200;

export class Plans implements vscode.Disposable {
  private readonly diagnostics = vscode.languages.createDiagnosticCollection("claude-projects");
  private readonly disposables: readonly { dispose(): unknown }[];

  constructor(private readonly pattern: () => string) {
    this.disposables = [
      this.diagnostics,
      vscode.workspace.onDidOpenTextDocument((document) => {
        this.check(document);
      }),
      vscode.workspace.onDidChangeTextDocument(({ document }) => {
        this.check(document);
      }),
      vscode.workspace.onDidCloseTextDocument(({ uri }) => {
        this.diagnostics.delete(uri);
      }),
    ];
    this.recheck();
  }

  dispose(): void {
    this.disposables.forEach((disposable) => disposable.dispose());
  }

  /** Checks the open documents again, after a change of the pattern. */
  recheck(): void {
    this.diagnostics.clear();
    vscode.workspace.textDocuments.forEach((document) => {
      this.check(document);
    });
  }

  async find(): Promise<vscode.Uri[]> {
    const found = await vscode.workspace.findFiles(this.pattern(), EXCLUDED, MOST);
    return found.sort((a, b) => a.path.localeCompare(b.path));
  }

  /** Reads a plan as it stands in its editor, saved or not. */
  async read(uri: vscode.Uri): Promise<Reading> {
    const document = await vscode.workspace.openTextDocument(uri);
    return readPlan(uri.fsPath, document.getText());
  }

  /** Every plan of the workspace that can be used. */
  async valid(): Promise<Plan[]> {
    const readings = await Promise.all(
      (await this.find()).map(async (uri) => {
        try {
          const content = await vscode.workspace.fs.readFile(uri);
          return readPlan(uri.fsPath, new TextDecoder().decode(content));
        } catch {
          // Deleted since it was found.
          return undefined;
        }
      }),
    );
    return readings.flatMap((reading) => (reading !== undefined && "plan" in reading ? [reading.plan] : []));
  }

  /** Shows where a plan is wrong. */
  async reveal(uri: vscode.Uri, problems: readonly Problem[]): Promise<void> {
    this.diagnostics.set(uri, problems.map(asDiagnostic));
    const first = problems[0];
    const editor = await vscode.window.showTextDocument(uri);
    if (first !== undefined) {
      const range = asRange(first);
      editor.selection = new vscode.Selection(range.start, range.start);
      editor.revealRange(range, vscode.TextEditorRevealType.InCenterIfOutsideViewport);
    }
  }

  private check(document: vscode.TextDocument): void {
    if (vscode.languages.match({ pattern: this.pattern(), scheme: "file" }, document) === 0) {
      return;
    }
    const reading = readPlan(document.uri.fsPath, document.getText());
    this.diagnostics.set(document.uri, "problems" in reading ? reading.problems.map(asDiagnostic) : []);
  }
}

function asDiagnostic(problem: Problem): vscode.Diagnostic {
  const diagnostic = new vscode.Diagnostic(asRange(problem), problem.message);
  diagnostic.source = "Claude Projects";
  return diagnostic;
}

function asRange({ span }: Problem): vscode.Range {
  return new vscode.Range(span.start.line, span.start.column, span.end.line, span.end.column);
}
