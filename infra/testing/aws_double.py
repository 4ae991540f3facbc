"""A stand-in for AWS in which SST keeps its state, secrets and assets: moto, on the port that is given.

moto takes a bucket policy for what it says and not for its conditions, so that "refuse what is not encrypted"
would refuse everything: policies are accepted and forgotten.
"""

from __future__ import annotations

import sys
from typing import Any

from moto.s3.models import S3Backend
from moto.server import main


def forget(*_: Any, **__: Any) -> None:
    """Take a bucket policy without keeping it."""


if __name__ == "__main__":
    S3Backend.put_bucket_policy = forget
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
