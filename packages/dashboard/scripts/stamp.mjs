// Leaves the digest of the sources beside the built files, so that a check without Node can tell whether they
// belong together. With --check: fails where they do not. The same rule in Python: tests/dashboard/test_build.py.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const stamp = join(root, "../state-tracking-api/src/state_tracking_api/http/dashboard/static/sources.sha256");

function digest() {
  const files = readdirSync(join(root, "src"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join("/"))
    .concat(["index.html", "package.json", "tsconfig.json", "vite.config.ts"])
    .sort();
  const hash = createHash("sha256");
  for (const file of files) {
    hash.update(`${file}\n`);
    hash.update(createHash("sha256").update(readFileSync(join(root, file))).digest("hex"));
    hash.update("\n");
  }
  return `${hash.digest("hex")}\n`;
}

if (process.argv.includes("--check")) {
  if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== digest()) {
    console.error("The built dashboard does not belong to its sources: run `make dashboard` and commit what it built.");
    process.exit(1);
  }
} else {
  writeFileSync(stamp, digest());
}
