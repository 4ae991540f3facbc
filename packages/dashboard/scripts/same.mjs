// Builds into a temporary folder and compares with the committed files, byte by byte: what is served is what the
// sources give, and nothing was put in by hand.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const committed = join(root, "../state-tracking-api/src/state_tracking_api/http/dashboard/static");
const fresh = mkdtempSync(join(tmpdir(), "dashboard-"));

function files(folder) {
  const found = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return new Map(
    found
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => [path.slice(folder.length + 1), readFileSync(path, "base64")])
      .filter(([name]) => name !== "sources.sha256"),
  );
}

try {
  await build({ root, logLevel: "error", build: { outDir: fresh, emptyOutDir: true } });
  const [left, right] = [files(fresh), files(committed)];
  const names = new Set([...left.keys(), ...right.keys()]);
  const differing = [...names].filter((name) => left.get(name) !== right.get(name)).sort();
  if (differing.length > 0) {
    console.error(`These files are not what the sources give: ${differing.join(", ")}. Run \`make dashboard\`.`);
    process.exitCode = 1;
  }
} finally {
  rmSync(fresh, { recursive: true, force: true });
}
