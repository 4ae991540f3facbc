"""Runtime state of long-running Claude orchestrations, as an HTTP API on MongoDB."""
