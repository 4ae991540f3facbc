"""What importing the client does not load: everybody who types a command waits for it."""

import subprocess
import sys

SCRIPT = """
import sys

import claude_projects

# Of httpx its own command line, and what that brings with it.
assert not {"httpx._main", "rich", "pygments", "click"} & set(sys.modules), sorted(sys.modules)
import claude_projects.cli
assert not {"httpx._main", "pygments"} & set(sys.modules)
import httpx._main
"""


def test_the_client_loads_no_command_line_and_a_command_only_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
