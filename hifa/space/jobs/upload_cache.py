"""Gradio's file cache on disk: uploads, and copies of the files for download.

Gradio deletes cached files by age only, and never after the server was killed. Therefore the app sets a cache folder
of its own and deletes the oldest files if the folder gets too large. Opening a run again creates new copies.

The cache is not inside the folder of the runs. Gradio may be configured to serve every file in that folder unchanged,
and an upload could be an HTML page with a script.
"""

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import time
from pathlib import Path

import gradio as gr


logger = logging.getLogger(__name__)
VARIABLE = "GRADIO_TEMP_DIR"  # environment variable with Gradio's cache folder
MAX_BYTES = 5 * 10**9
YOUNG = 600  # seconds during which a new file may still be needed


def folder_for(root: Path) -> Path:
    """Return the cache folder of the server with runs in `root`: the same after a restart, unique for each server."""
    name = _name_for(root)
    chosen = Path(os.environ.get(VARIABLE, ""))
    if chosen.name.startswith(name):  # a replacement folder of `serve_from`
        return chosen
    return Path(tempfile.gettempdir()).resolve() / name


def _name_for(root: Path) -> str:
    return f"hifa-served-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}"


def serve_from(root: Path) -> None:
    """Set Gradio's cache folder to a folder that only this user can read.

    A folder that is already set in the environment is left unchanged.

    In a shared temporary directory, another user could create the folder first and receive the uploads. In this case a
    new folder with a random name is used.
    """
    if VARIABLE in os.environ:
        return
    folder = folder_for(root)
    try:
        make_private(folder)
    except OSError as error:
        logger.warning("%s A new temporary folder is used until the next start.", error)
        folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    os.environ[VARIABLE] = str(folder)


def make_private(folder: Path) -> None:
    """Create a folder that only this user can read, or restrict an existing folder of this user.

    Raises:
        OSError: If the path is a link, a file, or a folder of another user.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        if not is_own(folder):
            raise FileExistsError(
                f"{str(folder)!r} is a link, a file or a folder of another user. Remove it or set {VARIABLE}."
            ) from None
        folder.chmod(0o700)  # folders of earlier versions were readable by other users


def is_own(folder: Path) -> bool:
    """Return whether `folder` is a folder of this user and not a link."""
    try:
        metadata = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(metadata.st_mode) and metadata.st_uid == os.getuid()


class Served:
    """Gradio's cache folder with a size limit.

    Args:
        path: The folder, which need not exist.
        max_bytes: Size limit of the files.
        young: Age in seconds below which a file is kept in any case.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, young: float = YOUNG):
        # Resolve only the parent: the folder itself must not be a link.
        self.path = path.parent.resolve() / path.name
        self.max_bytes, self.young, self.kept = max_bytes, young, frozenset()

    def keep(self, demo: gr.Blocks) -> None:
        """Exclude the files that every visitor of the page gets, such as example pictures, from deletion."""
        self.kept = frozenset(Path(name).resolve() for block in demo.blocks.values() for name in block.keep_in_cache)

    def sweep(self) -> list[Path]:
        """Delete the oldest files until the rest fits into `max_bytes`, and return the deleted paths.

        Nothing is deleted if the folder belongs to another user or is a link.
        """
        if not is_own(self.path):
            return []
        files, now = [], time.time()
        for path in self.path.rglob("*"):
            with contextlib.suppress(OSError):  # Gradio deletes files too, and folders may not be empty
                metadata = path.lstat()
                # A copy inherits the modification time of its original, but has a change time of its own.
                old = now - metadata.st_ctime >= self.young
                if stat.S_ISREG(metadata.st_mode) and path not in self.kept:
                    files.append((metadata.st_ctime, metadata.st_size, old, path))
                elif stat.S_ISDIR(metadata.st_mode) and old:
                    path.rmdir()
        total, removed = sum(size for _, size, _, _ in files), []
        for _, size, old, path in sorted(files):
            if total <= self.max_bytes or not old:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
                removed.append(path)
        return removed
