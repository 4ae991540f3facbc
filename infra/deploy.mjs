// @ts-check
/**
 * The one command to production, and back.
 *
 *   node infra/deploy.mjs deploy STAGE [options of `sst deploy`]
 *   node infra/deploy.mjs remove STAGE
 *   node infra/deploy.mjs rollback STAGE COMMIT
 *
 * SST's command line has no rollback: going back is deploying the commit that was good, from a checkout of its own,
 * against the same state. Nothing of it touches the working tree.
 */
import { spawnSync } from "node:child_process";
import { existsSync, rmSync } from "node:fs";
import { delimiter, join, resolve } from "node:path";
import { problems } from "./preflight.mjs";

const root = resolve(import.meta.dirname, "..");
const [command = "", stage = "", ...rest] = process.argv.slice(2);

/** @param {string} message @returns {never} */
function stop(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

/**
 * Runs a program with this one's terminal; its failure is ours.
 * @param {string} program @param {string[]} args @param {{ cwd?: string, env?: Record<string, string> }} [options]
 */
function run(program, args, { cwd = root, env = {} } = {}) {
  const { status, error } = spawnSync(program, args, { cwd, stdio: "inherit", env: { ...process.env, ...env } });
  if (error) stop(`${program} could not be started: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

/** @param {string[]} args */
function git(...args) {
  const { status, stdout } = spawnSync("git", args, { cwd: root, encoding: "utf8" });
  return status === 0 ? stdout.trim() : undefined;
}

/** @param {string} name */
const onPath = (name) => (process.env.PATH ?? "").split(delimiter).some((folder) => existsSync(join(folder, name)));

/** Stops where something is missing; senvn, where it is installed, may fill it in first. */
function preflight() {
  const found = problems(stage, process.env);
  if (found.length === 0) return;
  if (process.env.SENVN_TRIED === undefined && onPath("senvn")) {
    const [program = "senvn", ...args] = (process.env.SENVN_COMMAND || "senvn run --").split(" ");
    run(program, [...args, process.execPath, ...process.argv.slice(1)], { env: { SENVN_TRIED: "1" } });
    process.exit(0);
  }
  stop(`ConfigurationError: ${found.join("; ")}\nNothing was deployed. docs/DEPLOYMENT.md lists the variables.`);
}

/** What goes into a deployment: a file that lies there and that no commit has is deployed as well. */
const DEPLOYED = ["sst.config.ts", "infra", "packages/state-tracking-api/src"];

/** The commit that is deployed. Production takes nothing that could not be deployed again. */
function release() {
  if (process.env.RELEASE) return process.env.RELEASE;
  const commit = git("rev-parse", "HEAD");
  if (commit === undefined) return "unknown";
  const changed = git("status", "--porcelain", "--untracked-files=no");
  if (!changed && !git("ls-files", "--others", "--exclude-standard", "--", ...DEPLOYED)) return commit;
  if (stage === "prod" && process.env.ALLOW_DIRTY === undefined)
    stop("The working tree has changes that are not committed, so this deployment could not be rolled back to.\n" +
      "Commit them, or set ALLOW_DIRTY=1.");
  return `${commit}-dirty`;
}

/** The options that are SST's; `--stage prod` may be said again, but not differently. */
function options() {
  const passed = rest.flatMap((word) => (word.startsWith("--stage=") ? ["--stage", word.slice(8)] : [word]));
  for (let at = passed.indexOf("--stage"); at >= 0; at = passed.indexOf("--stage")) {
    const [, said] = passed.splice(at, 2);
    if (said !== stage) stop(`This command deploys to ${stage}; --stage says ${said}.`);
  }
  return passed;
}

const python = () => [join(root, ".venv/bin/python"), "python3"].find((path) => path === "python3" || existsSync(path)) ?? "python3";
const sst = join(root, "node_modules/.bin/sst");

function deploy() {
  const passed = options();
  preflight();
  const env = { RELEASE: release(), LAMBDA_BUNDLE: join(root, ".cache/lambda/bundle") };
  if (!existsSync(sst)) stop("SST is not installed here: run `pnpm install`.");
  run(python(), ["infra/package.py", "build", env.LAMBDA_BUNDLE]);
  run(sst, ["deploy", "--stage", stage, ...passed], { env });
  process.stdout.write(`Deployed ${env.RELEASE} to ${stage}. Check it: make verify-deployment URL=<the url above>\n`);
}

function remove() {
  preflight();
  if (stage === "prod" && process.env.REMOVE_PROTECTED !== "prod")
    stop("prod is protected. To remove it all the same: REMOVE_PROTECTED=prod pnpm run remove");
  run(sst, ["remove", "--stage", stage, ...options()], { env: { LAMBDA_BUNDLE: join(root, ".cache/lambda/bundle") } });
}

function rollback() {
  const wanted = rest[0] ?? stop("Which commit was good? pnpm rollback:prod COMMIT (`git log --oneline`)");
  const commit = git("rev-parse", "--verify", "--quiet", `${wanted}^{commit}`) ?? stop(`${wanted} is no commit of this repository.`);
  preflight();
  const checkout = join(root, ".cache/rollback", commit);
  rmSync(checkout, { recursive: true, force: true });
  git("worktree", "prune");
  run("git", ["worktree", "add", "--quiet", "--detach", checkout, commit]);
  const local = join(root, ".cache/pnpm/node_modules/.bin/pnpm");
  const uv = join(root, ".venv/bin/uv");
  const env = { ...process.env, RELEASE: commit, ...(existsSync(uv) ? { UV: uv } : {}) };
  // The steps of that commit, not of this one; the checkout goes away whether they succeed or not.
  const steps = [
    [existsSync(local) ? local : "pnpm", "install", "--frozen-lockfile", "--filter", "."],
    [process.execPath, "infra/deploy.mjs", "deploy", stage],
  ];
  let status = 0;
  for (const [program = "", ...args] of steps)
    if (status === 0) status = spawnSync(program, args, { cwd: checkout, stdio: "inherit", env }).status ?? 1;
  git("worktree", "remove", "--force", checkout);
  process.exit(status);
}

const commands = new Map([["deploy", deploy], ["remove", remove], ["rollback", rollback]]);
const chosen = commands.get(command) ?? stop(`Usage: node infra/deploy.mjs ${[...commands.keys()].join("|")} STAGE`);
if (!/^[a-z][a-z0-9-]{0,19}$/.test(stage)) stop("A stage is a short name such as prod or dev.");
chosen();
