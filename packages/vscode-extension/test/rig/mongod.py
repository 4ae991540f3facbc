"""A real mongod for the tests: prints a line of JSON once it takes writes, ends with its standard input."""

import json
import sys
from pathlib import Path

from state_tracking_api.embedded import Mongod

with Mongod.start(Path(sys.argv[1])) as mongod:
    print(json.dumps({"uri": mongod.uri, "pid": mongod.pid}), flush=True)
    sys.stdin.read()
