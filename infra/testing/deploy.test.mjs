/**
 * The commands of package.json, in a small repository of their own. SST, the packaging and pnpm are stand-ins that
 * write down how they were called: what is tested is what happens before, between and after them.
 */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { afterEach, beforeEach, test } from "node:test";

const project = resolve(import.meta.dirname, "../..");
const KEY = "11111111-2222-4333-8444-555555555555";
const COMPLETE = { MONGODB_URI: "mongodb://db.example/", API_KEYS: `ci=${KEY}`, ALARM_EMAIL: "operator@example.com" };

let root;
let calls;

function program(path, body) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `#!/bin/sh\n${body}\n`);
  chmodSync(path, 0o755);
}

const git = (...args) => execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();

function commit(message) {
  git("add", "-A");
  git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "-m", message);
  return git("rev-parse", "HEAD");
}

/** A stand-in for SST that writes down its stage, the release and the version of the sources it was run on. */
const sst = () => `echo "sst $* release=$RELEASE sources=$(cat sources.txt)" >>${calls}; exit \${SST_EXIT:-0}`;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "deploy-"));
  calls = join(root, "..", `${root.split("/").at(-1)}.calls`);
  for (const file of ["infra/deploy.mjs", "infra/preflight.mjs", "package.json"]) cpSync(join(project, file), join(root, file));
  writeFileSync(join(root, ".gitignore"), "node_modules/\n.venv/\n.cache/\nbin/\n");
  writeFileSync(join(root, "sources.txt"), "first");
  program(join(root, "node_modules/.bin/sst"), sst());
  program(join(root, ".venv/bin/python"), `echo "package $*" >>${calls}`);
  program(join(root, ".venv/bin/uv"), "");
  program(
    join(root, ".cache/pnpm/node_modules/.bin/pnpm"),
    `echo "pnpm $*" >>${calls}; mkdir -p node_modules/.bin .venv/bin\n` +
      `cp ${join(root, "node_modules/.bin/sst")} node_modules/.bin/; cp ${join(root, ".venv/bin/python")} .venv/bin/`,
  );
  git("init", "-q", "-b", "main");
  commit("first");
});

afterEach(() => {
  rmSync(root, { recursive: true, force: true });
  rmSync(calls, { force: true });
});

function run(script, args = [], env = COMPLETE) {
  const [node, ...command] = JSON.parse(readFileSync(join(root, "package.json"), "utf8")).scripts[script].split(" ");
  assert.equal(node, "node");
  const done = spawnSync(process.execPath, [...command, ...args], {
    cwd: root,
    encoding: "utf8",
    env: { PATH: `${join(root, "bin")}:${process.env.PATH}`, HOME: process.env.HOME, ...env },
  });
  return { ...done, called: existsSync(calls) ? readFileSync(calls, "utf8").trim().split("\n") : [] };
}

test("deploy:prod packages the function, deploys the commit and says how to check it", () => {
  const done = run("deploy:prod");
  assert.equal(done.status, 0, done.stderr);
  assert.deepEqual(done.called, [
    `package infra/package.py build ${root}/.cache/lambda/bundle`,
    `sst deploy --stage prod release=${git("rev-parse", "HEAD")} sources=first`,
  ]);
  assert.match(done.stdout, /make verify-deployment/);
});

test("deploy:dev deploys to dev and wants no address for alarms", () => {
  const { ALARM_EMAIL: _, ...env } = COMPLETE;
  assert.match(run("deploy:dev", [], env).called.at(-1), /^sst deploy --stage dev /);
});

test("the stage may be said twice, but not differently", () => {
  assert.match(run("deploy:prod", ["--stage", "prod", "--verbose"]).called.at(-1), /^sst deploy --stage prod --verbose release/);
  assert.match(run("deploy:prod", ["--stage=prod"]).called.at(-1), /^sst deploy --stage prod release/);
  rmSync(calls);
  for (const said of [["--stage", "dev"], ["--stage=dev"], ["--stage", "prod", "--stage", "dev"]]) {
    const done = run("deploy:prod", said);
    assert.deepEqual([done.status, done.called], [1, []]);
  }
});

for (const missing of Object.keys(COMPLETE))
  test(`without ${missing} nothing begins, and it is named`, () => {
    const done = run("deploy:prod", [], { ...COMPLETE, [missing]: "" });
    assert.equal(done.status, 1);
    assert.match(done.stderr, new RegExp(`^ConfigurationError: ${missing} is missing`));
    assert.deepEqual(done.called, []);
  });

test("a malformed key is named without being shown", () => {
  const done = run("deploy:prod", [], { ...COMPLETE, API_KEYS: "a-secret" });
  assert.match(done.stderr, /ConfigurationError: API_KEYS has an entry that is not a UUID v4/);
  assert.doesNotMatch(done.stderr, /a-secret/);
});

for (const [name, value] of [
  ["ALARM_EMAIL", "operator"],
  ["ALARM_EMAIL", "one@example.com,two@example.com"],
  ["AWS_REGION", "us-east"],
  ["AWS_REGION", "us-east-1a"],
  ["DOMAIN", "https://claude-projects.truapi.com"],
  ["DOMAIN", "localhost"],
])
  test(`what AWS would refuse half-way is named before anything begins: ${name}=${value}`, () => {
    const done = run("deploy:prod", [], { ...COMPLETE, [name]: value });
    assert.equal(done.status, 1);
    assert.match(done.stderr, new RegExp(`^ConfigurationError: ${name} is not `));
    assert.deepEqual(done.called, []);
  });

test("a region, a name and an address of every usual form are taken", () => {
  for (const AWS_REGION of ["eu-central-1", "ap-southeast-2", "us-gov-west-1"])
    assert.equal(run("deploy:prod", [], { ...COMPLETE, AWS_REGION, DOMAIN: "a-1.b.example.co.uk", ALARM_EMAIL: "a.b+c@x.example.com" }).status, 0);
});

test("senvn, where it is installed, fills in what is missing", () => {
  const exported = Object.entries(COMPLETE).map(([name, value]) => `${name}='${value}'`).join(" ");
  program(join(root, "bin/senvn"), `[ "$1 $2" = "run --" ] || exit 9; shift 2; exec env ${exported} "$@"`);
  const done = run("deploy:prod", [], {});
  assert.equal(done.status, 0, done.stderr);
  assert.match(done.called.at(-1), /^sst deploy --stage prod/);
});

test("senvn that does not know a variable leaves the error as it is", () => {
  program(join(root, "bin/senvn"), 'shift 2; exec "$@"');
  const done = run("deploy:prod", [], {});
  assert.equal(done.status, 1);
  assert.match(done.stderr, /ConfigurationError: MONGODB_URI is missing/);
});

test("production refuses what is not committed; dev takes it and says so", () => {
  writeFileSync(join(root, "sources.txt"), "changed");
  const refused = run("deploy:prod");
  assert.deepEqual([refused.status, refused.called], [1, []]);
  assert.match(refused.stderr, /not committed/);
  assert.match(run("deploy:dev").called.at(-1), /release=[0-9a-f]{40}-dirty sources=changed$/);
  assert.equal(run("deploy:prod", [], { ...COMPLETE, ALLOW_DIRTY: "1" }).status, 0);
});

test("production refuses a source that no commit has; other files that lie there are no matter", () => {
  writeFileSync(join(root, "prod.env"), "");
  assert.equal(run("deploy:prod").status, 0);
  rmSync(calls);
  mkdirSync(join(root, "packages/state-tracking-api/src"), { recursive: true });
  writeFileSync(join(root, "packages/state-tracking-api/src/new.py"), "");
  const refused = run("deploy:prod");
  assert.deepEqual([refused.status, refused.called], [1, []]);
  assert.match(refused.stderr, /not committed/);
});

test("a deployment that SST fails, fails", () => {
  const done = run("deploy:prod", [], { ...COMPLETE, SST_EXIT: "7" });
  assert.equal(done.status, 7);
  assert.doesNotMatch(done.stdout, /Deployed/);
});

test("remove spares production unless the operator says so; dev is removed", () => {
  assert.deepEqual([run("remove").status, run("remove").called], [1, []]);
  assert.match(run("remove", [], { ...COMPLETE, REMOVE_PROTECTED: "prod" }).called[0], /^sst remove --stage prod /);
  assert.match(run("remove:dev").called.at(-1), /^sst remove --stage dev /);
});

test("rollback deploys the good commit from a checkout of its own and leaves the working tree alone", () => {
  const good = git("rev-parse", "HEAD");
  writeFileSync(join(root, "sources.txt"), "broken");
  commit("broken");
  writeFileSync(join(root, "sources.txt"), "being mended");
  const done = run("rollback:prod", [good.slice(0, 10)]);
  assert.equal(done.status, 0, done.stderr);
  assert.equal(done.called[0], "pnpm install --frozen-lockfile --filter .");
  assert.equal(done.called.at(-1), `sst deploy --stage prod release=${good} sources=first`);
  assert.equal(readFileSync(join(root, "sources.txt"), "utf8"), "being mended");
  assert.equal(git("worktree", "list").split("\n").length, 1);
});

test("a rollback that fails says so and leaves no checkout behind", () => {
  const done = run("rollback:prod", ["HEAD"], { ...COMPLETE, SST_EXIT: "3" });
  assert.equal(done.status, 3);
  assert.equal(git("worktree", "list").split("\n").length, 1);
});

test("rollback wants a commit that exists", () => {
  for (const args of [[], ["nonsense"]]) {
    const done = run("rollback:prod", args);
    assert.deepEqual([done.status, done.called], [1, []]);
  }
});
