/**
 * Bundles the extension as it is, with the stand-in for its editor, for the rounds of `tests/faults`:
 * `build.mjs OUTDIR [BUG]`. BUG puts one in on purpose: `{"file": "src/…", "edits": [["text", "other text"], …]}`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const [outdir, json] = process.argv.slice(2);
const extension = join(import.meta.dirname, "../..");

/** A bug: the texts of one source file that are another one's in this bundle. */
const bug = ({ file, edits }) => ({
  name: "bug",
  setup: ({ onLoad }) => {
    const path = join(extension, file);
    onLoad({ filter: /\.ts$/ }, (source) => {
      if (source.path !== path) {
        return undefined;
      }
      let contents = readFileSync(path, "utf8");
      for (const [text, other] of edits) {
        if (contents.split(text).length !== 2) {
          throw new Error(`${file} should have this text once: ${text}`);
        }
        contents = contents.replace(text, () => other);
      }
      return { contents, loader: "ts" };
    });
  },
});

const { warnings } = await build({
  absWorkingDir: extension,
  entryPoints: { window: "test/faults/window.ts", guard: "src/guard.ts" },
  outdir,
  outExtension: { ".js": ".cjs" },
  bundle: true,
  platform: "node",
  target: "node20",
  format: "cjs",
  alias: { vscode: join(extension, "test/faults/editor.ts") },
  plugins: json === undefined ? [] : [bug(JSON.parse(json))],
  logLevel: "warning",
});
// Such as a name of the editor's that the stand-in does not have.
process.exit(warnings.length);
