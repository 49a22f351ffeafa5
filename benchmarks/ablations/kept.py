"""Figures that are kept in files until something they depend on changes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path


def digest(*parts: bytes) -> str:
    """Of all that a figure depends on."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def kept(path: Path, key: str, make: Callable[[], dict]) -> dict:
    """What a file holds, with its `key`; made again when that differs."""
    if path.exists() and (row := json.loads(path.read_text())).get("key") == key:
        return row
    row = {"key": key, **make()}
    path.write_text(json.dumps(row))
    return row
