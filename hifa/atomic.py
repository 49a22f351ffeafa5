"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomically(path: str | os.PathLike) -> Iterator[Path]:
    """A path in the same folder to write to. It becomes `path` when the block ends and goes away if the block fails.

    Raises:
        OSError: If the file cannot be written; the message names `path` and the reason in one line.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")  # libraries go by the suffix
    try:
        # Tells now, not after the work, and with the name the caller knows.
        partial.touch()
        yield partial
        os.replace(partial, path)
    except OSError as error:
        told = OSError(f"Cannot write {path}: {error.strerror or error}.")
        told.errno = error.errno  # not as an argument, or it would be part of the message
        raise told from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
