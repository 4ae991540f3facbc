/**
 * Evaluates the whole stack with SST's own components and prints what it would declare, as JSON.
 *
 * Nothing is created. Pulumi's mocks stand in the place of its engine, and `cli` below is a double of the two services
 * that SST's command line offers to the components: the names of the bootstrap buckets, and the build of a function
 * that is given as a bundle, where the command line only adds the encrypted links. The zip is made by SST itself.
 *
 *   node infra/testing/evaluate.mjs STAGE [--work DIR] [--faults FILE]
 *   node infra/testing/evaluate.mjs --example      prod with made-up secrets and an empty bundle
 *
 * FILE holds [{file, from, to}, …]: replacements in the sources of infra/, to prove that the tests notice.
 */
import { createCipheriv } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { mocks } from "./mocks.mjs";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { work: { type: "string" }, faults: { type: "string" }, example: { type: "boolean" } },
});
const stage = positionals[0] ?? "prod";
const root = resolve(import.meta.dirname, "../..");
const platform = join(root, ".sst/platform");
const require = createRequire(join(platform, "package.json"));
const work = resolve(options.work ?? mkdtempSync(join(tmpdir(), "evaluate-")));
const faults = options.faults ? JSON.parse(readFileSync(options.faults, "utf8")) : [];

/** The app, as sst.config.ts describes it for this stage. */
async function readApp() {
  const outfile = join(platform, `evaluate-app-${process.pid}.mjs`);
  await bundle(outfile, `import mod from ${JSON.stringify(join(root, "sst.config.ts"))};\nexport default mod;`, {
    $config: "Object",
  });
  try {
    const { default: config } = await import(pathToFileURL(outfile));
    return { ...config.app({ stage }), stage };
  } finally {
    rmSync(outfile, { force: true });
  }
}

/** As SST's command line bundles it (pkg/project/run.go, pkg/js). */
async function bundle(outfile, code, define, inject = []) {
  await require("esbuild").build({
    stdin: { contents: code, resolveDir: root, loader: "ts" },
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "esnext",
    mainFields: ["module", "main"],
    packages: "external",
    define,
    inject,
    logLevel: "silent",
    banner: {
      js: "import { createRequire as topLevelCreateRequire } from 'module'; const require = topLevelCreateRequire(import.meta.url);",
    },
    plugins: [{ name: "faults", setup: seedFaults }],
  });
}

function seedFaults(build) {
  build.onLoad({ filter: /(infra\/[^/]+|sst\.config)\.ts$/ }, ({ path }) => {
    let contents = readFileSync(path, "utf8");
    for (const { file, from, to } of faults.filter((fault) => fault.file === relative(root, path))) {
      if (!contents.includes(from)) throw new Error(`the seeded fault finds no "${from}" in ${file}`);
      contents = contents.replaceAll(from, to);
    }
    return { contents, loader: "ts" };
  });
}

/** The double of the command line's services; see above. */
function startCli() {
  const methods = {
    "Provider.Aws.Bootstrap": ({ region }) => ({
      asset: `sst-asset-${region}`,
      state: `sst-state-${region}`,
      assetEcrRegistryId: "123456789012",
      assetEcrUrl: "none",
    }),
    "Runtime.Build": ({ bundle, handler, links, encryptionKey }) => {
      const out = resolve(root, bundle);
      const cipher = createCipheriv("aes-256-gcm", Buffer.from(encryptionKey, "base64"), Buffer.alloc(12));
      const sealed = Buffer.concat([cipher.update(JSON.stringify(links)), cipher.final(), cipher.getAuthTag()]);
      writeFileSync(join(out, "resource.enc"), sealed);
      return { out, handler, errors: [], sourcemaps: [] };
    },
  };
  const server = createServer(async (request, response) => {
    const { method, params } = JSON.parse(Buffer.concat(await request.toArray()).toString());
    const answer = methods[method]
      ? { result: methods[method](params[0]) }
      : { error: `rpc: can't find method ${method}` };
    response.end(JSON.stringify(answer));
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done(server)));
}

async function main() {
  if (options.example) {
    const secrets = { MONGODB_URI: "mongodb://db.example/", API_KEYS: "11111111-2222-4333-8444-555555555555" };
    Object.assign(process.env, secrets, { ALARM_EMAIL: "operator@example.com", LAMBDA_BUNDLE: join(work, "bundle") });
    mkdirSync(join(work, "bundle"), { recursive: true });
  }
  const app = await readApp();
  const server = await startCli();
  process.env.SST_SERVER = `http://127.0.0.1:${server.address().port}`;
  // Read by SST's components from the project's root, as the command line would have it.
  const cli = { command: "deploy", dev: false, paths: { home: work, root, work, platform }, state: { version: {} } };

  const resources = [];
  const pulumi = require("@pulumi/pulumi");
  await pulumi.runtime.setMocks(mocks(resources), app.name, stage, false);

  mkdirSync(work, { recursive: true });
  const outfile = join(platform, `evaluate-${process.pid}.mjs`);
  try {
    await bundle(
      outfile,
      `import { run } from ${JSON.stringify(join(platform, "src/auto/run.ts"))};
       import * as aws from "@pulumi/aws";
       import * as sst from ${JSON.stringify(join(platform, "src/components"))};
       Object.assign(globalThis, { aws, sst });
       import mod from ${JSON.stringify(join(root, "sst.config.ts"))};
       export default () => run(mod.run);`,
      { $app: JSON.stringify(app), $cli: JSON.stringify(cli), $dev: "false" },
      [join(platform, "src/shim/run.js")],
    );
    const { default: run } = await import(pathToFileURL(outfile));
    const outputs = await new Promise((done, failed) => {
      pulumi.runtime
        .runInPulumiStack(async () => {
          const result = await run();
          pulumi.output(result).apply(done);
          return result;
        })
        .catch(failed);
    });
    await pulumi.runtime.disconnect();
    process.stdout.write(JSON.stringify({ app, outputs, resources }));
  } finally {
    rmSync(outfile, { force: true });
    if (!options.work) rmSync(work, { recursive: true, force: true });
    server.close();
  }
}

process.on("unhandledRejection", fail);
main().then(() => process.exitCode ?? process.exit(0), fail);

function fail(error) {
  process.stderr.write(`${error?.message ?? error}\n${process.env.DEBUG ? error?.stack : ""}\n`);
  process.exit(1);
}
