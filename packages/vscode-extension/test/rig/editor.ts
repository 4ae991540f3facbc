/**
 * A real VS Code: its server in a process group of its own, with nothing of the user's, and a browser that drives it.
 * The server can be killed and started again on the same data; a window can be left without its host being ended.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { type Browser, type BrowserContext, type LaunchOptions, type Page, chromium } from "playwright-core";
import { identify } from "../../src/processes.js";
import { freePort } from "./backend.js";
import { until } from "./until.js";
import { Window } from "./window.js";

const PACKAGE = join(import.meta.dirname, "../..");
const VSCODE = join(PACKAGE, "../../.cache/code-server/node_modules/code-server/lib/vscode");
const CODE_SERVER = join(VSCODE, "out/server-main.js");
/** Of the extensions that VS Code brings along, those that can be seen: the others take longer to start than it does. */
const BUILT_IN = ["theme-defaults", "theme-seti"];
const VSIX = join(PACKAGE, "dist/claude-projects.vsix");
const VSCE = join(PACKAGE, "node_modules/.bin/vsce");
const CHROMIUM = process.env["CHROMIUM"] ?? "/usr/bin/chromium";

const BROWSER: LaunchOptions = {
  executablePath: CHROMIUM,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
};

export interface EditorOptions {
  /** The extension's settings, without their prefix. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Added to the server's environment, and so to the extension host's. */
  readonly environment?: Readonly<Record<string, string>>;
  readonly theme?: string;
  /** Directories of further extensions, which are installed as well. */
  readonly extensions?: readonly string[];
}

export class Editor {
  private server: ChildProcess | undefined;
  /** Tabs that show nothing: to open a folder in one of them takes less than in a new one. */
  private readonly idle: Page[] = [];

  private constructor(
    private readonly directory: string,
    readonly port: number,
    private readonly browser: Browser,
    /** All windows are of one profile, as a person's are: its cache spares each the editor's own code. */
    private readonly profile: BrowserContext,
    private readonly options: EditorOptions,
  ) {}

  static async start(options: EditorOptions): Promise<Editor> {
    const directory = await mkdtemp(join(tmpdir(), "claude-projects-editor-"));
    const browser = await chromium.launch(BROWSER);
    const profile = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: "dark" });
    profile.setDefaultTimeout(60_000);
    const editor = new Editor(directory, await freePort(), browser, profile, options);
    await editor.configure({});
    await editor.install();
    await editor.up();
    return editor;
  }

  get url(): string {
    return `http://127.0.0.1:${String(this.port)}`;
  }

  /** Makes a folder to open, with these files in it. */
  async folder(files: Readonly<Record<string, string>>): Promise<string> {
    const folder = join(this.directory, `work-${randomUUID().slice(0, 8)}`);
    await mkdir(folder, { recursive: true });
    for (const [name, content] of Object.entries(files)) {
      await writeFile(join(folder, name), content);
    }
    return folder;
  }

  /** Writes the machine's settings; a running editor takes them up by itself. */
  async configure(
    settings: Readonly<Record<string, unknown>>,
    others: Readonly<Record<string, unknown>> = {},
  ): Promise<void> {
    const machine = join(this.directory, "data/data/Machine");
    const user = join(this.directory, "data/data/User");
    await mkdir(machine, { recursive: true });
    await mkdir(user, { recursive: true });
    const ours = Object.fromEntries(
      Object.entries({ ...this.options.settings, ...settings }).map(([name, value]) => [
        `claudeProjects.${name}`,
        value,
      ]),
    );
    const all = {
      "security.workspace.trust.enabled": false,
      "workbench.startupEditor": "none",
      "workbench.colorTheme": this.options.theme ?? "Default Dark Modern",
      "workbench.tips.enabled": false,
      "chat.commandCenter.enabled": false,
      "remote.autoForwardPorts": false,
      "telemetry.telemetryLevel": "off",
      ...ours,
      ...others,
    };
    await writeFile(join(machine, "settings.json"), JSON.stringify(all, undefined, 2));
    await writeFile(join(user, "settings.json"), JSON.stringify(all, undefined, 2));
  }

  async up(): Promise<void> {
    const server = spawn(process.execPath, [CODE_SERVER, ...this.serverArguments()], {
      env: this.environment(),
      stdio: "ignore",
      detached: true,
    });
    this.server = server;
    await until(`the editor answers on ${this.url}`, async () => (await fetch(this.url)).ok);
  }

  /** Kills the server with its extension hosts and terminals. */
  async kill(): Promise<void> {
    const { server } = this;
    if (server?.pid === undefined || server.exitCode !== null || server.signalCode !== null) {
      return;
    }
    const gone = new Promise((resolve) => server.once("exit", resolve));
    const members = descendants(server.pid);
    process.kill(-server.pid, "SIGKILL");
    for (const pid of members.filter(isOfTheEditor)) {
      killQuietly(pid);
    }
    await gone;
  }

  async stop(): Promise<void> {
    await this.browser.close();
    const members = this.server?.pid === undefined ? [] : descendants(this.server.pid);
    await this.kill();
    members.forEach(killQuietly);
    await rm(this.directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }

  /** Opens a folder in a window, and waits until the extension is active there. */
  async open(folder: string): Promise<Window> {
    const page = this.idle.pop() ?? (await this.profile.newPage());
    const known = new Set(await this.activated());
    await page.goto(`${this.url}/?folder=${encodeURIComponent(folder)}`);
    const window = new Window(page, this, folder);
    await window.ready();
    // To look takes time that the window needs.
    const find = async (): Promise<number | undefined> => (await this.activated()).find((pid) => !known.has(pid));
    window.host = await until("the extension is active", find, 60_000, 250);
    return window;
  }

  /** Takes back the tab of a window that was closed. */
  retire(page: Page): void {
    this.idle.push(page);
  }

  /** The process ids of all living extension hosts. */
  hosts(): number[] {
    return this.server?.pid === undefined ? [] : descendants(this.server.pid).filter((pid) => isHost(pid));
  }

  /** What the extension has written to its output channel, in all windows so far. */
  async log(): Promise<string> {
    const files = await findFiles(join(this.directory, "data/data/logs"), "Claude Projects.log");
    return (await Promise.all(files.map((file) => readFile(file, "utf8")))).join("");
  }

  /** The extension hosts in which the extension was activated so far. */
  private async activated(): Promise<number[]> {
    return [...(await this.log()).matchAll(/, process (\d+)\.$/gm)].map(([, pid]) => Number(pid));
  }

  /** The directory that survives everything: the extension's global storage. */
  get storage(): string {
    return join(this.directory, "data/data/User/globalStorage/claude-projects.claude-projects");
  }

  private async install(): Promise<void> {
    for (const name of BUILT_IN) {
      await cp(join(VSCODE, "extensions", name), join(this.directory, "built-in", name), { recursive: true });
    }
    const packages = (this.options.extensions ?? []).map((directory) => {
      const vsix = join(this.directory, `${basename(directory)}.vsix`);
      const options = ["--no-dependencies", "--allow-missing-repository", "--skip-license", "--out", vsix];
      execFileSync(VSCE, ["package", ...options], { cwd: directory, stdio: "pipe" });
      return vsix;
    });
    const wanted = [VSIX, ...packages].flatMap((vsix) => ["--install-extension", vsix]);
    await promisify(execFile)(process.execPath, [CODE_SERVER, ...this.serverArguments(), ...wanted], {
      env: this.environment(),
    });
  }

  private serverArguments(): string[] {
    return [
      "--host=127.0.0.1",
      `--port=${String(this.port)}`,
      "--without-connection-token",
      "--accept-server-license-terms",
      "--telemetry-level=off",
      `--server-data-dir=${join(this.directory, "data")}`,
      `--builtin-extensions-dir=${join(this.directory, "built-in")}`,
      `--extensions-dir=${join(this.directory, "extensions")}`,
    ];
  }

  private environment(): NodeJS.ProcessEnv {
    const home = join(this.directory, "home");
    return {
      PATH: process.env["PATH"],
      LANG: "C.UTF-8",
      HOME: home,
      XDG_CONFIG_HOME: join(home, ".config"),
      XDG_DATA_HOME: join(home, ".local/share"),
      XDG_CACHE_HOME: join(home, ".cache"),
      EXTENSIONS_GALLERY: "{}",
      ...this.options.environment,
    };
  }
}

/** All processes below one, by /proc: an extension host is a child of the server. */
function descendants(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const pid of readdirSync("/proc").map(Number).filter(Number.isInteger)) {
    const parent = parentOf(pid);
    children.set(parent, [...(children.get(parent) ?? []), pid]);
  }
  const found: number[] = [];
  const visit = (pid: number): void => {
    for (const child of children.get(pid) ?? []) {
      found.push(child);
      visit(child);
    }
  };
  visit(root);
  return found;
}

function parentOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    // It has ended since it was listed.
    return -1;
  }
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${String(pid)}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return "";
  }
}

function isHost(pid: number): boolean {
  return identify(pid) !== undefined && commandOf(pid).includes("--type=extensionHost");
}

/** Not what the extension's tasks have started: that they end by themselves is under test. */
function isOfTheEditor(pid: number): boolean {
  return commandOf(pid).includes("bootstrap-fork");
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // Gone already.
  }
}

async function findFiles(directory: string, name: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true }).catch(() => []);
  return entries
    .filter((entry) => basename(entry).endsWith(name))
    .map((entry) => join(directory, entry))
    .sort();
}
