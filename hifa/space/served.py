"""What Gradio keeps on disk to give it away: uploads, and copies of what can be downloaded.

It deletes them by age alone, and after a kill never. Here they have a folder of their own, of which the oldest go when
they take too much: what a run has is copied again when somebody asks for it.
"""

import contextlib
import os
from pathlib import Path

import gradio as gr


VARIABLE = "GRADIO_TEMP_DIR"  # where Gradio looks for the folder
FOLDER = "served"  # beside the runs
MAX_BYTES = 5 * 10**9


def served_beside(root: Path) -> None:
    """Let Gradio keep its files beside the runs, unless somebody chose another place."""
    os.environ.setdefault(VARIABLE, str(root.resolve() / FOLDER))


class Served:
    """The folder.

    Args:
        path: It need not exist.
        max_bytes: What its files may take.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES):
        self.path, self.max_bytes, self.kept = path, max_bytes, frozenset()

    def keep(self, demo: gr.Blocks) -> None:
        """Never delete what every visitor of a page gets, such as the pictures of the examples."""
        self.kept = frozenset(Path(name) for block in demo.blocks.values() for name in block.keep_in_cache)

    def sweep(self) -> list[Path]:
        """Delete the files that were put there longest ago, until the others take no more; returns them."""
        files = []
        for path in self.path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # Gradio deletes, too
                if path.is_file() and path not in self.kept:
                    facts = path.stat()
                    # A copy has the time of its original; this is its own.
                    files.append((facts.st_ctime, facts.st_size, path))
        total, removed = sum(size for _, size, _ in files), []
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there is more in it
                path.parent.rmdir()
            total -= size
            removed.append(path)
        return removed
