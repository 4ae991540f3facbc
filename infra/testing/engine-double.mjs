#!/usr/bin/env node
/**
 * A double of the Pulumi engine, for SST's command line (SST_PULUMI_PATH). It evaluates the program under Pulumi's
 * mocks, writes the state and the events that SST reads afterwards, and CREATES NOTHING. What passes with it says that
 * SST's command line takes the project, bundles it, builds the function and reports; it says nothing about AWS.
 */
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { mocks } from "./mocks.mjs";

const [command, ...args] = process.argv.slice(2);
const option = (name) => args[args.indexOf(name) + 1];

const stack = command === "stack" ? args[1] : option("--stack");
const [, app, stage] = stack.split("/");
const state = join(process.cwd(), ".pulumi/stacks", app, `${stage}.json`);

function writeState(resources) {
  const manifest = { time: new Date().toISOString(), magic: "", version: "double" };
  mkdirSync(dirname(state), { recursive: true });
  writeFileSync(state, JSON.stringify({ version: 3, checkpoint: { stack, latest: { manifest, resources } } }));
}

const event = (content) =>
  appendFileSync(option("--event-log"), `${JSON.stringify({ sequence: 0, timestamp: Math.floor(Date.now() / 1000), ...content })}\n`);

async function up() {
  const [, main] = /^main: (.+)$/m.exec(readFileSync("Pulumi.yaml", "utf8"));
  const pulumi = createRequire(join(dirname(main), "package.json"))("@pulumi/pulumi");
  const resources = [];
  await pulumi.runtime.setMocks(mocks(resources), app, stage, false);
  const outputs = await new Promise((done, failed) => {
    process.on("unhandledRejection", failed);
    pulumi.runtime
      .runInPulumiStack(async () => {
        const { default: result } = await import(pathToFileURL(main));
        pulumi.output(result).apply(done);
        return result;
      })
      .catch(failed);
  });
  await pulumi.runtime.disconnect();
  const type = "pulumi:pulumi:Stack";
  const urn = `urn:pulumi:${stage}::${app}::${type}::${app}-${stage}`;
  writeState([{ urn, type, custom: false, outputs: { ...outputs, evaluatedResources: resources.length } }]);
}

function finish(code) {
  event({ summaryEvent: { maybeCorrupt: false, durationSeconds: 1, resourceChanges: {}, policyPacks: {} } });
  process.exit(code);
}

if (command === "stack") writeState([]);
else
  up().then(
    () => finish(0),
    (error) => {
      event({ diagnosticEvent: { severity: "error", message: String(error?.message ?? error), color: "never" } });
      finish(1);
    },
  );
