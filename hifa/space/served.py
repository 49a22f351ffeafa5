"""What Gradio keeps on disk to give it away: uploads, and copies of what can be downloaded.

It deletes them by age alone, and after a kill never. Here they have a folder of their own, of which the oldest go when
they take too much; who opens a run again gets new copies. The folder is not below that of the runs, which may be one
that Gradio gives everything away from, as it is: an upload of somebody's could be a page with a script in it.
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
VARIABLE = "GRADIO_TEMP_DIR"  # where Gradio looks for the folder
MAX_BYTES = 5 * 10**9
YOUNG = 600  # seconds in which somebody may still be about to use a file


def folder_for(root: Path) -> Path:
    """The folder of the server whose runs are in `root`: the same after a restart, another one for another server."""
    name = _name_for(root)
    chosen = Path(os.environ.get(VARIABLE, ""))
    if chosen.name.startswith(name):  # where it lies if its usual place was taken
        return chosen
    return Path(tempfile.gettempdir()).resolve() / name


def _name_for(root: Path) -> str:
    return f"hifa-served-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}"


def serve_from(root: Path) -> None:
    """Let Gradio keep its files in a folder that nobody else can look into, unless somebody chose another place, which
    is then left alone.

    In a shared temporary directory anybody can make the folder first, and be given the uploads. Then another one is
    taken, with a name that nobody can foresee.
    """
    if VARIABLE in os.environ:
        return
    folder = folder_for(root)
    try:
        make_private(folder)
    except OSError as error:
        logger.warning("%s Another folder is taken until the next start.", error)
        folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    os.environ[VARIABLE] = str(folder)


def make_private(folder: Path) -> None:
    """Make a folder of this user's own, readable by nobody else, or see to it that it is one.

    Raises:
        OSError: If there is something else: a link, a file, or the folder of another user.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not is_own(folder):
            raise FileExistsError(f"{str(folder)!r} is a link, or not a folder of this user.") from None
        os.chmod(folder, 0o700)  # of earlier versions, which let others read


def is_own(folder: Path) -> bool:
    """Whether it is a folder of this user, and no link."""
    try:
        facts = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()


class Served:
    """The folder.

    Args:
        path: It need not exist.
        max_bytes: What its files may take, but for those that are young.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, young: float = YOUNG):
        # The parent alone is resolved: the folder itself must be no link.
        self.path = path.parent.resolve() / path.name
        self.max_bytes, self.young, self.kept = max_bytes, young, frozenset()

    def keep(self, demo: gr.Blocks) -> None:
        """Never delete what every visitor of a page gets, such as the pictures of the examples."""
        self.kept = frozenset(Path(name).resolve() for block in demo.blocks.values() for name in block.keep_in_cache)

    def sweep(self) -> list[Path]:
        """Delete the files that were put there longest ago, until the others take no more; returns them. Nothing is
        deleted in a folder of somebody else, or behind a link."""
        if not is_own(self.path):
            return []
        files, now = [], time.time()
        for path in self.path.rglob("*"):
            with contextlib.suppress(OSError):  # Gradio deletes, too, and a folder may not be empty
                facts = path.lstat()
                # A copy has the times of its original; this is its own.
                old = now - facts.st_ctime >= self.young
                if stat.S_ISREG(facts.st_mode) and path not in self.kept:
                    files.append((facts.st_ctime, facts.st_size, old, path))
                elif stat.S_ISDIR(facts.st_mode) and old:
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
