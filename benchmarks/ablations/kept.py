"""Cache files for results. A result is recomputed when its inputs change."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path


def digest(*parts: bytes) -> str:
    """Return a hash of all inputs of a result."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def kept(path: Path, key: str, make: Callable[[], dict]) -> dict:
    """Return the result in a cache file. If the file is missing or has another `key`, compute and write the result."""
    if path.exists() and (row := json.loads(path.read_text())).get("key") == key:
        return row
    row = {"key": key, **make()}
    path.write_text(json.dumps(row))
    return row
