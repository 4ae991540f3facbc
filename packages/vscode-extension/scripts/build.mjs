/** Bundles the extension and the guard of its commands. `--watch` keeps at it; `--dev` adds source maps. */
import { context } from "esbuild";

const watch = process.argv.includes("--watch");
const isDevelopment = watch || process.argv.includes("--dev");

const bundles = await context({
  entryPoints: { extension: "src/extension.ts", guard: "src/guard.ts" },
  outdir: "dist",
  outExtension: { ".js": ".cjs" },
  bundle: true,
  platform: "node",
  target: "node20",
  format: "cjs",
  external: ["vscode"],
  minify: !isDevelopment,
  sourcemap: isDevelopment,
  legalComments: "none",
  logLevel: "warning",
});
if (watch) {
  await bundles.watch();
} else {
  await bundles.rebuild();
  await bundles.dispose();
}
