#!/usr/bin/env bash
# Installs a real VS Code that a browser can drive: code-server from npm, into the directory given.
# Its own postinstall downloads from hosts that may be out of reach, so that scripts stay off, only the
# native modules that the server loads are built, and ripgrep is the system's.
set -euo pipefail

VERSION=4.100.3 # VS Code 1.100.3, the oldest that package.json's engines.vscode admits; runs on Node 20
target=$(realpath -m "$1")
stamp=$target/.installed-$VERSION
[[ -f $stamp ]] && exit 0

for tool in node npm rg g++ python3; do
    command -v "$tool" >/dev/null || { echo "install-code-server: $tool is missing" >&2; exit 1; }
done

rm -rf "$target"
mkdir -p "$target"
log=$target/install.log
trap 'echo "install-code-server: failed, the end of $log:" >&2; tail -n 40 "$log" >&2' ERR

# Headers come with Node; without this node-gyp would fetch them.
npm_config_nodedir=$(node -p 'require("path").resolve(process.execPath, "../..")')
export npm_config_nodedir
export npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false

cd "$target"
echo '{"private":true}' >package.json
npm install --ignore-scripts "code-server@$VERSION" >"$log" 2>&1
cd node_modules/code-server/lib/vscode
# `install`, not `ci`: the shrinkwrap that the package carries is out of step with its manifest.
npm install --ignore-scripts >>"$log" 2>&1
npm rebuild --build-from-source @vscode/spdlog native-watchdog >>"$log" 2>&1
node_gyp=$(find "$(npm root -g)/npm" -path '*node-gyp/bin/node-gyp.js' -print -quit)
(cd node_modules/node-pty && node "$node_gyp" rebuild) >>"$log" 2>&1
mkdir -p node_modules/@vscode/ripgrep/bin
ln -sf "$(command -v rg)" node_modules/@vscode/ripgrep/bin/rg
touch "$stamp"
