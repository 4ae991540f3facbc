/** The package says what is true of the extension: its manifest, its README, its files. */
import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { outputFile, pruneOutput } from "../../src/orchestration/output.js";

interface MenuItem {
  readonly command: string;
  readonly when?: string;
  readonly group?: string;
}

const PACKAGE = join(import.meta.dirname, "../..");
const README = readFileSync(join(PACKAGE, "README.md"), "utf8");
const MANIFEST = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8")) as {
  readonly dependencies?: unknown;
  readonly capabilities: {
    readonly untrustedWorkspaces: {
      readonly supported: unknown;
      readonly restrictedConfigurations: readonly string[];
    };
  };
  readonly contributes: {
    readonly commands: readonly { readonly command: string; readonly title: string }[];
    readonly configuration: {
      readonly properties: Readonly<
        Record<string, { readonly markdownDescription?: string; readonly default: unknown; readonly scope?: string }>
      >;
    };
    readonly menus: Readonly<Record<string, readonly MenuItem[]>>;
    readonly viewsWelcome: readonly { readonly contents: string }[];
    readonly walkthroughs: readonly {
      readonly steps: readonly {
        readonly description: string;
        readonly media: { readonly image?: string; readonly markdown?: string };
      }[];
    }[];
  };
};
const { commands, configuration, menus, viewsWelcome, walkthroughs } = MANIFEST.contributes;
const STEPS = walkthroughs.flatMap(({ steps }) => steps);

describe("the manifest", () => {
  test("describes every setting, and so does the README with the same default", () => {
    for (const [name, { markdownDescription = "", default: fallback }] of Object.entries(configuration.properties)) {
      expect(markdownDescription, name).not.toBe("");
      const shown = fallback === "" ? "" : typeof fallback === "string" ? `\`${fallback}\`` : String(fallback);
      expect(README).toContain(`| \`${name}\` | ${shown}${shown === "" ? "" : " "}|`);
    }
  });

  test("lets no repository say where the key is sent, nor what goes on by itself before it is trusted", () => {
    const ofTheMachine = Object.entries(configuration.properties).filter(([, { scope }]) => scope === "machine");
    expect(ofTheMachine.map(([name]) => name)).toEqual(["claudeProjects.apiUrl", "claudeProjects.machineId"]);
    expect(README).toMatch(/`claudeProjects\.apiUrl` \|.*A workspace cannot set it/);
    const { untrustedWorkspaces } = MANIFEST.capabilities;
    expect(untrustedWorkspaces.supported).toBe("limited");
    expect(untrustedWorkspaces.restrictedConfigurations).toContain("claudeProjects.leftBehind");
  });

  test("has every command of the palette in the README, and every link to a command leads to one", () => {
    const hidden = new Set((menus["commandPalette"] ?? []).map(({ command }) => command));
    for (const { command, title } of commands.filter((one) => !hidden.has(one.command))) {
      expect(README, command).toContain(title);
    }
    const known = new Set(commands.map(({ command }) => command));
    const texts = [...viewsWelcome.map(({ contents }) => contents), ...STEPS.map(({ description }) => description)];
    const linked = texts.flatMap((text) => [...text.matchAll(/command:([\w.]+)/g)].map(([, command = ""]) => command));
    const listed = Object.values(menus).flatMap((items) => items.map(({ command }) => command));
    expect(linked.length).toBeGreaterThan(0);
    expect([...linked, ...listed].filter((command) => !known.has(command))).toEqual([]);
  });

  test("has every action of a row in its menu too, since only a mouse reaches those in the row itself", () => {
    const items = menus["view/item/context"] ?? [];
    const inRow = items.filter(({ group }) => group?.startsWith("inline") === true);
    expect(inRow.length).toBeGreaterThan(0);
    for (const { command, when } of inRow) {
      expect(
        items.some((item) => item.command === command && item.when === when && !item.group?.startsWith("inline")),
        command,
      ).toBe(true);
    }
  });

  test("has pictures and texts of the walkthrough that exist, as those of the README do", () => {
    const media = STEPS.map(({ media: { image, markdown } }) => image ?? markdown ?? "");
    const pictures = [...README.matchAll(/!\[[^\]]+\]\(([^)]+)\)/g)].map(([, path = ""]) => path);
    expect(pictures.length).toBeGreaterThan(0);
    expect([...media, ...pictures].filter((path) => !existsSync(join(PACKAGE, path)))).toEqual([]);
  });
});

describe("the package", () => {
  const vsix = join(PACKAGE, "dist/claude-projects.vsix");

  test("is small, has no dependencies, and nothing in it that nobody needs at run time", () => {
    expect(MANIFEST.dependencies).toBeUndefined();
    expect(statSync(vsix).size).toBeLessThan(400 * 1024);
    const listing = execFileSync("python3", ["-m", "zipfile", "-l", vsix], { encoding: "utf8" });
    const files = listing.split("\n").flatMap((line) => /^extension\/(\S+)/.exec(line)?.[1] ?? []);
    expect(files.filter((file) => !file.startsWith("media/")).toSorted()).toEqual([
      "changelog.md",
      "claude-projects.d.ts",
      "dist/extension.cjs",
      "dist/guard.cjs",
      "package.json",
      "readme.md",
    ]);
  });
});

test("what tasks have written is kept for thirty days", () => {
  const directory = mkdtempSync(join(tmpdir(), "claude-projects-output-"));
  try {
    const now = Date.now();
    for (const [name, days] of [
      ["old", 31],
      ["recent", 29],
    ] as const) {
      const path = outputFile(directory, "run", name);
      writeFileSync(path, "");
      const moment = new Date(now - days * 24 * 3_600_000);
      utimesSync(path, moment, moment);
    }
    pruneOutput(directory, now);
    expect(readdirSync(directory)).toEqual(["run-recent.log"]);
    pruneOutput(join(directory, "not-there"), now);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
