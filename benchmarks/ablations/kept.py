"""File cache of figures, recomputed when their inputs change."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path


def digest(*parts: bytes) -> str:
    """Return a hash of all inputs of a figure."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def kept(path: Path, key: str, make: Callable[[], dict]) -> dict:
    """Return the contents of a cache file. If its `key` differs, recompute them."""
    if path.exists() and (row := json.loads(path.read_text())).get("key") == key:
        return row
    row = {"key": key, **make()}
    path.write_text(json.dumps(row))
    return row
