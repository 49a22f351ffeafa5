"""What Gradio keeps on disk to give it away: uploads, and copies of what can be downloaded.

It deletes them by age alone, and after a kill never. Here they have a folder of their own, of which the oldest go when
they take too much; who opens a run again gets new copies. The folder is not below that of the runs, which may be one
that Gradio gives everything away from, as it is: an upload of somebody's could be a page with a script in it.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

import gradio as gr


VARIABLE = "GRADIO_TEMP_DIR"  # where Gradio looks for the folder
MAX_BYTES = 5 * 10**9
YOUNG = 600  # seconds in which somebody may still be about to use a file


def folder_for(root: Path) -> Path:
    """The folder of the server whose runs are in `root`: the same after a restart, another one for another server."""
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()).resolve() / f"hifa-served-{name}"


def serve_from(root: Path) -> None:
    """Let Gradio keep its files there, unless somebody chose another place, which is then left alone."""
    os.environ.setdefault(VARIABLE, str(folder_for(root)))


class Served:
    """The folder.

    Args:
        path: It need not exist.
        max_bytes: What its files may take, but for those that are young.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, young: float = YOUNG):
        self.path, self.max_bytes, self.young, self.kept = path.resolve(), max_bytes, young, frozenset()

    def keep(self, demo: gr.Blocks) -> None:
        """Never delete what every visitor of a page gets, such as the pictures of the examples."""
        self.kept = frozenset(Path(name).resolve() for block in demo.blocks.values() for name in block.keep_in_cache)

    def sweep(self) -> list[Path]:
        """Delete the files that were put there longest ago, until the others take no more; returns them."""
        files, now = [], time.time()
        for path in self.path.rglob("*"):
            with contextlib.suppress(OSError):  # Gradio deletes, too, and a folder may not be empty
                facts = path.stat()
                # A copy has the times of its original; this is its own.
                old = now - facts.st_ctime >= self.young
                if path.is_file() and path not in self.kept:
                    files.append((facts.st_ctime, facts.st_size, old, path))
                elif path.is_dir() and old:
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
