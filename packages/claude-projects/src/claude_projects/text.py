"""Text as it may be shown and stored, whoever wrote it."""

import re

_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")  # terminal colours and the like


def printable(text: str) -> str:
    """``text`` without what no API stores and no terminal should be sent: controls, halves of characters."""
    return "".join(c for c in _SEQUENCES.sub("", text) if c in "\n\t" or c.isprintable()).strip()
