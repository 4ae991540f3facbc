"""The VS Code extension as a client: its own code, bundled with a stand-in for the editor.

`packages/vscode-extension/test/faults` has the program. It is the extension from its activation on, with its
commands, its files and its guard; what stands in is the editor's API, and the person who looks at it.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from fault_harness.mutants import ExtensionMutant

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "packages/vscode-extension"


def bundle(directory: Path, bug: ExtensionMutant | None = None) -> Path:
    """Build the program into `directory`, with a bug where one is given; the file that Node.js runs."""
    assert (ROOT / "node_modules/.installed").exists(), (
        "the VS Code extension's packages are missing: make node_modules/.installed"
    )
    said = [] if bug is None else [json.dumps({name: asdict(bug)[name] for name in ("file", "edits")})]
    command = ["node", str(PACKAGE / "test/faults/build.mjs"), str(directory), *said]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return directory / "window.cjs"
