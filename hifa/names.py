"""Names of files and folders."""

import re


def file_name(text: str) -> str:
    """A text as a file name: lower-case letters, digits and hyphens, 60 at most; `asset` if none is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "asset"
