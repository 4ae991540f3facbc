/**
 * SST's own command line on the project: it reads the configuration, keeps its state, bundles, builds and reports.
 * Behind it stand two doubles, moto for AWS and engine-double.mjs for Pulumi; nothing is created anywhere, and what
 * passes here is no deployment.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createDecipheriv } from "node:crypto";
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

const project = resolve(import.meta.dirname, "../..");
const python = join(project, ".cache/infra/bin/python");
const URI = "mongodb://someone:a-password@db.example/";
const KEYS = "ci=11111111-2222-4333-8444-555555555555";
const SOURCES = ["sst.config.ts", "package.json", "infra"];
const root = mkdtempSync(join(tmpdir(), "sst-"));
const home = join(root, "home");

let aws;
let port;

before(async () => {
  // A copy: SST writes its state and generated types beside the configuration.
  for (const path of SOURCES) cpSync(join(project, path), join(root, path), { recursive: true });
  symlinkSync(join(project, "node_modules"), join(root, "node_modules"));
  mkdirSync(join(root, ".sst"));
  cpSync(join(project, ".sst/provider-lock.json"), join(root, ".sst/provider-lock.json"));
  symlinkSync(join(project, ".sst/platform"), join(root, ".sst/platform"));
  mkdirSync(join(root, "bundle/state_tracking_api"), { recursive: true });
  writeFileSync(join(root, "bundle/state_tracking_api/aws.py"), "# the function\n");
  // SST makes a new stack with the engine of its own folder, whatever SST_PULUMI_PATH says.
  const engine = join(home, ".config/sst/bin/pulumi");
  mkdirSync(join(engine, ".."), { recursive: true });
  symlinkSync(join(project, "infra/testing/engine-double.mjs"), engine);
  chmodSync(join(project, "infra/testing/engine-double.mjs"), 0o755);

  port = await new Promise((done) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => done(port));
    });
  });
  aws = spawn(python, [join(project, "infra/testing/aws_double.py"), String(port)], { stdio: "ignore" });
  const deadline = Date.now() + 180_000;
  while (!(await listens(port))) {
    assert.ok(Date.now() < deadline && aws.exitCode === null, "moto did not start");
    await pause(100);
  }
});

after(() => {
  aws?.kill();
  rmSync(root, { recursive: true, force: true });
});

function listens(port) {
  return new Promise((done) => {
    const socket = connect(port, "127.0.0.1", () => (socket.destroy(), done(true))).on("error", () => done(false));
  });
}

function sst(args, env = {}) {
  const done = spawnSync(join(project, "node_modules/.bin/sst"), args, {
    cwd: root,
    encoding: "utf8",
    timeout: 180_000,
    env: {
      PATH: process.env.PATH,
      HOME: home,
      XDG_CONFIG_HOME: join(home, ".config"),
      SST_PULUMI_PATH: join(home, ".config/sst/bin/pulumi"),
      SST_SKIP_DEPENDENCY_CHECK: "1",
      SST_NO_BUN: "1",
      SST_TELEMETRY_DISABLED: "1",
      DO_NOT_TRACK: "1",
      AWS_EC2_METADATA_DISABLED: "true",
      AWS_ENDPOINT_URL: `http://127.0.0.1:${port}`,
      AWS_ACCESS_KEY_ID: "double",
      AWS_SECRET_ACCESS_KEY: "double",
      AWS_REGION: "us-east-1",
      LAMBDA_BUNDLE: join(root, "bundle"),
      RELEASE: "0123abc",
      MONGODB_URI: URI,
      API_KEYS: KEYS,
      ALARM_EMAIL: "operator@example.com",
      ...env,
    },
  });
  return { status: done.status, text: done.stdout + done.stderr };
}

test("deploy takes the project, builds the function and reports the outputs", () => {
  const { status, text } = sst(["deploy", "--stage", "prod"]);
  assert.equal(status, 0, text);
  const outputs = JSON.parse(readFileSync(join(root, ".sst/outputs.json"), "utf8"));
  assert.equal(outputs.url, "https://claude-projects.truapi.com");
  assert.equal(outputs.logGroup, "/aws/lambda/state-tracking-api-prod");
  assert.equal(outputs.release, "0123abc");
  assert.ok(outputs.evaluatedResources > 50);
});

test("SST's own build encrypts the secrets into the package, as the double of it in evaluate.mjs does", () => {
  const sealed = readFileSync(join(root, "bundle/resource.enc"));
  // The key is the one that the mocks give for the random bytes.
  const cipher = createDecipheriv("aes-256-gcm", Buffer.alloc(32, 7), Buffer.alloc(12));
  cipher.setAuthTag(sealed.subarray(-16));
  const links = JSON.parse(Buffer.concat([cipher.update(sealed.subarray(0, -16)), cipher.final()]).toString());
  assert.equal(links.MongodbUri.value, URI);
  assert.equal(links.ApiKeys.value, KEYS);
  const zip = readFileSync(join(root, ".sst/artifacts/Server/code.zip"));
  for (const name of ["resource.enc", "state_tracking_api/aws.py"]) assert.ok(zip.includes(name), name);
  assert.ok(!zip.includes("a-password"));
});

test("a missing variable fails the deployment and is named", () => {
  const { status, text } = sst(["deploy", "--stage", "prod"], { MONGODB_URI: "" });
  assert.notEqual(status, 0);
  assert.match(text, /ConfigurationError: MONGODB_URI is missing/);
});

test("an invalid configuration fails the deployment and the place is named", () => {
  const path = join(root, "infra/api.ts");
  const sound = readFileSync(path, "utf8");
  try {
    writeFileSync(path, sound.replace("export function createApi(", "export function createApi(("));
    const { status, text } = sst(["deploy", "--stage", "prod"]);
    assert.notEqual(status, 0);
    assert.match(text, /infra\/api\.ts:\d+/);
  } finally {
    writeFileSync(path, sound);
  }
});

/** What tsc finds before anything is asked: [file, what stands there, fault, where tsc says it if not right there]. */
const WRONG_TYPES = [
  ["sst.config.ts", '"retain"', '"keep"', "app(input)"],
  ["infra/function.ts", '"512 MB"', '"512 megabytes"'],
  ["infra/function.ts", '"30 seconds"', '"half a minute"'],
  ["infra/function.ts", '"python3.13"', '"python3.99"'],
  ["infra/function.ts", '"1 month"', '"31 days"'],
  ["infra/schedules.ts", '"rate(10 minutes)"', '"every tuesday"', "schedule,"],
  ["infra/alarms.ts", "evaluationPeriods: 5", 'evaluationPeriods: "five"'],
  ["infra/edge.ts", "settings.region ===", "settings.regoin ==="],
  ["infra/api.ts", "throttlingRateLimit: 100", "throttlingRate: 100"],
  ["infra/dashboard.ts", "dashboardBody: body", "content: body"],
  ["infra/settings.ts", "MONGODB_URI: env.MONGODB_URI!.trim(),", "", "secrets: {"],
  ["infra/preflight.mjs", "found.push(`${name}", "found.add(`${name}"],
  ["infra/deploy.mjs", 'process.stderr.write(`${message}\\n`)', "process.stderr.write(0, message)"],
];

test("tsc names file and line of a wrong value in configuration, stack and scripts", () => {
  const sound = new Map(WRONG_TYPES.map(([file]) => [file, readFileSync(join(root, file), "utf8")]));
  const wrong = new Map(sound);
  for (const [file, from, to] of WRONG_TYPES) {
    assert.ok(wrong.get(file).includes(from), `${file} has no ${from}`);
    wrong.set(file, wrong.get(file).replace(from, to));
  }
  try {
    for (const [file, text] of wrong) writeFileSync(join(root, file), text);
    const tsc = join(project, "node_modules/.bin/tsc");
    const { stdout } = spawnSync(tsc, ["--project", "infra/tsconfig.json", "--pretty", "false"], { cwd: root, encoding: "utf8" });
    const said = stdout.split("\n").map((line) => line.replace(/,\d+\): error .*/, ""));
    for (const [file, from, to, place = to] of WRONG_TYPES) {
      const line = wrong.get(file).slice(0, wrong.get(file).indexOf(place)).split("\n").length;
      assert.ok(said.includes(`${file}(${line}`), `${from} to ${to} in ${file}:${line} is not said:\n${stdout}`);
    }
  } finally {
    for (const [file, text] of sound) writeFileSync(join(root, file), text);
  }
});

test("production is protected from removal", () => {
  const { status, text } = sst(["remove", "--stage", "prod"]);
  assert.notEqual(status, 0);
  assert.match(text, /protect/i);
});

test("the command line has no rollback", () => {
  const { text } = sst(["deploy", "--help"]);
  assert.match(text, /--stage/);
  assert.doesNotMatch(text, /rollback/);
});
