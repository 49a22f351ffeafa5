"""File names, and atomic file writes: a file is written completely or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` to write to.

    The temporary file is renamed to `path` when the block ends, and deleted if the block fails.

    Raises:
        OSError: If the file cannot be written. The one-line message has `path` and the reason.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")  # libraries need the suffix
    try:
        # Fail before the work is done, and name the path of the caller in the error.
        partial.touch()
        yield partial
        partial.replace(path)
    except OSError as error:
        told = OSError(f"Cannot write {path}: {error.strerror or error}.")
        told.errno = error.errno  # an errno argument would appear in the message
        raise told from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """Return a file name of at most 60 lowercase letters, digits and hyphens; `asset` if none remain."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "asset"
