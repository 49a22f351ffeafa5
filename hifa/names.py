"""File and folder names."""

import re


def file_name(text: str) -> str:
    """Return a file name of at most 60 lowercase letters, digits and hyphens; `asset` if none remain."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "asset"
