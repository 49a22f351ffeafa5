"""Storage of runs on disk. Each run has a folder with an unguessable name, which holds the entire state of the run.

    <root>/<id>/record.json     request and progress
                run/            written by `HiFARun.save`
                picture.png, sheet.png, sheets/    inputs of the image tabs, and generated views
                previews.json   latest preview pictures, as data URIs
                files/          files for download
                stop            exists while a stop is requested
                later           exists while the files are postponed
                lock            locked by the process that works on the run
    <root>/visitors/            see `history`

Anyone with the id can open, stop and resume a run. Visitors cannot list the ids of other visitors' runs.
"""

import contextlib
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...storage import migration
from ...storage.checkpoint import write_text_atomically
from ...storage.run_folder import is_saved_in
from .upload_cache import Served, folder_for


ID = re.compile(r"[A-Za-z0-9_-]{22}")  # format of secrets.token_urlsafe(16): 128 random bits
RECORD, RUN, PREVIEWS, FILES = "record.json", "run", "previews.json", "files"
STOP, LATER, LOCK = "stop", "later", "lock"
PICTURE = "picture.png"
WAITING, RUNNING, PAUSED, STOPPED, FINISHED, FAILED = "waiting", "running", "paused", "stopped", "finished", "failed"
DAY = 86_400
SWEEP_SECONDS = 60  # minimum time between two sweeps


class UnknownRunError(ValueError):
    """The run does not exist: the id is wrong, or the run was deleted."""


class BusyRunError(ValueError):
    """Another thread or process is working on the run."""


@dataclass(frozen=True)
class Request:
    """Parameters of a run. They are sufficient to repeat the run.

    Args:
        kind: `"text"`, `"image"` or `"hallucination"`.
        prompt, negative_prompt: Prompts. With an empty prompt there is no distillation.
        prior: Key of `models.PRIORS`.
        seed: Seed of the optimization.
        settings: Fields of `HiFAConfig` that differ from the default of the prior.
        object_share: Size of the object relative to the frame, in the picture from which views are generated.
        elevation_deg: Elevation of the picture's camera in degrees.
        view_seeds: Seeds of the sheets to generate from the picture. The best sheet is reconstructed.
        view_steps: Denoising steps of each sheet; `None` for the default of the multi-view model.
        views_only: Whether to stop after the sheets.
    """

    kind: str
    prompt: str
    prior: str
    seed: int
    negative_prompt: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    object_share: float = 200 / 256
    elevation_deg: float = 30.0
    view_seeds: tuple[int, ...] = ()
    view_steps: int | None = None
    views_only: bool = False


@dataclass(frozen=True)
class Record:
    """Progress of a run.

    Args:
        request: Parameters of the run.
        status: One of the status constants of this module.
        message: Reason why the run is paused or failed, or a remark, for the user.
        problem: Reason why files are missing, for the user.
        step, steps: Finished steps and total number of steps of the optimization.
        loss: Loss of the last step; `None` before the first step.
        seconds: Time spent on steps, over all leases, in seconds.
        created, touched: Unix times of the creation and of the last write.
        files: Paths in `files/` by kind: `glb`, `obj`, `ply`, `mp4`, `asset`, `run`.
        made_at: Step of the run at which each kind of file was made, or could not be made without a surface.
        metadata: Metadata of the mesh and the files, for the user.
    """

    request: Request
    status: str = WAITING
    message: str = ""
    problem: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    created: float = field(default_factory=time.time)
    touched: float = field(default_factory=time.time)
    files: dict[str, str] = field(default_factory=dict)
    made_at: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """Folder of one run.

    Args:
        path: An existing folder.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def id(self) -> str:
        """Id of the run."""
        return self.path.name

    @property
    def run(self) -> Path:
        """Folder that `HiFARun.save` writes."""
        return self.path / RUN

    @property
    def started(self) -> bool:
        """Whether the folder contains a saved run."""
        return is_saved_in(self.run)

    @property
    def files(self) -> Path:
        """Folder of the files for download, created if necessary."""
        folder = self.path / FILES
        folder.mkdir(exist_ok=True)
        return folder

    def read(self) -> Record:
        """Read the record.

        Raises:
            UnknownRunError: If the record is missing or damaged.
        """
        try:
            values = migration.renamed(json.loads((self.path / RECORD).read_text("utf-8")), migration.RECORD)
            request = values.pop("request")
            request["view_seeds"] = tuple(request["view_seeds"])
            request["settings"] = migration.renamed(request["settings"], migration.SETTINGS)
            return Record(Request(**request), **values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UnknownRunError(
                f"The record of this run is missing or damaged ({type(error).__name__}). Start a new run."
            ) from error

    def write(self, record: Record, **changes: Any) -> Record:
        """Write the record with `changes` atomically, and return the new record."""
        record = replace(record, touched=time.time(), **changes)
        write_text_atomically(self.path / RECORD, json.dumps(asdict(record)))
        return record

    def previews(self) -> dict[str, str]:
        """Return the latest preview pictures as data URIs by mode; empty before the first preview."""
        try:
            return migration.renamed(json.loads((self.path / PREVIEWS).read_text("utf-8")), migration.PREVIEWS)
        except (OSError, ValueError):
            return {}

    def request_stop(self) -> None:
        """Request a stop of the run. The process that works on the run stops soon."""
        with contextlib.suppress(FileNotFoundError):  # the run was deleted
            (self.path / STOP).touch()

    def clear_stop(self, patience: float = 10.0) -> None:
        """Remove the stop request before the run is resumed. The stop request of a run in progress stays.

        Args:
            patience: See `locked`.

        Raises:
            BusyRunError, UnknownRunError: See `locked`.
        """
        with self.locked(patience):
            (self.path / STOP).unlink(missing_ok=True)

    @property
    def stop_requested(self) -> bool:
        """Whether to stop the run. A deleted folder counts as a stop request."""
        return (self.path / STOP).exists() or not self.path.exists()

    def put_off_files(self) -> None:
        """Postpone the files that are being made."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / LATER).touch()

    def want_files(self) -> None:
        """Undo `put_off_files`."""
        (self.path / LATER).unlink(missing_ok=True)

    @property
    def files_put_off(self) -> bool:
        """Whether the files are postponed."""
        return (self.path / LATER).exists()

    @property
    def busy(self) -> bool:
        """Whether another thread or process works on the run. The lock is released even if that process crashes."""
        try:
            with self.locked(0):
                return False
        except BusyRunError:
            return True

    @contextlib.contextmanager
    def locked(self, patience: float = 10.0) -> Iterator[None]:
        """Hold the lock of the run. The operating system releases the lock when the process ends.

        Args:
            patience: Seconds to wait for the lock.

        Raises:
            BusyRunError: If the lock is still taken after `patience` seconds.
            UnknownRunError: If the folder was deleted.
        """
        if not self.path.is_dir():  # `FileLock` would create the folder
            raise UnknownRunError("This run was deleted. Start a new run.")
        # Gradio may resume and close a generator in other threads, which must be able to release the lock.
        lock = FileLock(self.path / LOCK, poll_interval=0.05, thread_local=False)
        try:
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise BusyRunError("This run is in use, here or in another window. Stop it there, or wait.") from error
        try:
            yield
        finally:
            lock.release()

    def size(self) -> int:
        """Return the total size of the files in bytes."""
        total = 0
        for file in self.path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # files may disappear while the run is in progress
                total += file.stat().st_size if file.is_file() else 0
        return total


class RunStore:
    """Store of all runs.

    Args:
        root: Folder of the store. A missing folder is created, readable by its owner only.
        max_age: Seconds that a run is kept after its last change.
        max_bytes: Size limit of all runs together, in bytes. The least recently changed runs are deleted first.
    """

    def __init__(self, root: Path, max_age: float = 7 * DAY, max_bytes: int = 20 * 10**9):
        self.root, self.max_age, self.max_bytes = Path(root), max_age, max_bytes
        self.served = Served(folder_for(self.root))
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweeping, self._swept = threading.Lock(), 0.0

    def create(self, request: Request) -> RunFolder:
        """Create a run. Old runs may be deleted to free space.

        Raises:
            OSError: If the disk is full.
        """
        self.sweep()
        folder = RunFolder(self.root / secrets.token_urlsafe(16))
        folder.path.mkdir(mode=0o700)
        folder.write(Record(request))
        return folder

    def open(self, run_id: Any) -> RunFolder:
        """Return the run with an id.

        Args:
            run_id: Id of the run, possibly from an untrusted source.

        Raises:
            UnknownRunError: If the id is malformed or there is no such run.
        """
        if not isinstance(run_id, str) or not ID.fullmatch(run_id) or not (self.root / run_id / RECORD).is_file():
            raise UnknownRunError(
                f"There is no run with this address. Runs are kept for {self.max_age / DAY:g} days. Start a new run."
            )
        return RunFolder(self.root / run_id)

    def sweep(self, now: bool = False) -> list[str]:
        """Delete runs above the age or size limit, except for runs in progress, and return the deleted ids.

        Args:
            now: Whether to sweep even if the last sweep was less than `SWEEP_SECONDS` ago.
        """
        with self._sweeping:
            if not now and time.monotonic() - self._swept < SWEEP_SECONDS:
                return []
            self._swept = time.monotonic()
            with contextlib.suppress(OSError):  # a failed sweep of the cache must not block a run
                self.served.sweep()
            return self._sweep()

    def _sweep(self) -> list[str]:
        runs = []
        for path in self.root.iterdir():
            if ID.fullmatch(path.name):
                with contextlib.suppress(OSError):  # another process may delete runs, too
                    runs.append((_last_touched(path), RunFolder(path).size(), path))
        total, removed = sum(size for _, size, _ in runs), []
        for touched, size, path in sorted(runs):
            if time.time() - touched <= self.max_age and total <= self.max_bytes:
                break
            if _remove(RunFolder(path)):
                total -= size
                removed.append(path.name)
        return removed


def _last_touched(path: Path) -> float:
    record = path / RECORD
    return record.stat().st_mtime if record.exists() else path.stat().st_mtime


def _remove(folder: RunFolder) -> bool:
    """Delete a run unless the run is in progress, and return whether the run was deleted."""
    try:
        with folder.locked(0):
            shutil.rmtree(folder.path, ignore_errors=True)
    except (BusyRunError, UnknownRunError):
        return False
    return True
