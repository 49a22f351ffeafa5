"""Runs on disk: each has a folder with an unguessable name, and all of its state is in there.

    <root>/<id>/record.json     what was asked and how far it is
                run/            HiFARun.save
                picture.png, sheet.png, sheets/    what the image tabs were given, and the views that were made
                previews.json   the last pictures, as data URIs
                files/          what can be downloaded
                stop            is there while somebody wants it to stop
                later           is there while somebody wants no files to be made now
                lock            held by the process that works on it
    <root>/visitors/            see `history`

Whoever knows the id may open, stop and continue a run; nothing lists the ids of others.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..saved import is_saved_in
from ..state import write_text_atomically
from .served import Served, folder_for


ID = re.compile(r"[A-Za-z0-9_-]{22}")  # of secrets.token_urlsafe(16): 128 random bits
RECORD, RUN, PREVIEWS, FILES = "record.json", "run", "previews.json", "files"
STOP, LATER, LOCK = "stop", "later", "lock"
PICTURE = "picture.png"
WAITING, RUNNING, PAUSED, STOPPED, FINISHED, FAILED = "waiting", "running", "paused", "stopped", "finished", "failed"
DAY = 86_400
SWEEP_SECONDS = 60  # at least, between two clean-ups


class UnknownRunError(ValueError):
    """There is no such run: a wrong id, or one that was cleaned up."""


class BusyRunError(ValueError):
    """Somebody else is working on the run."""


@dataclass(frozen=True)
class Request:
    """What somebody asked for; enough to start the run again.

    Args:
        kind: `"text"`, `"image"` or `"hallucination"`.
        prompt, negative_prompt: No prompt, no distillation.
        prior: Key of `priors.PRIORS`.
        seed: Of everything.
        settings: Fields of `HiFAConfig` that differ from the prior's default.
        object_share: Of the frame that the object takes in the picture that the views are made of.
        elevation_deg: Of the picture's camera.
        view_seeds: Of the sheets to make from the picture; the best one is reconstructed.
        view_steps: Denoising steps for them; as many as the multi-view model is made for without it.
        views_only: End with the sheets.
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
    """Where a run is.

    Args:
        status: One of the constants of this module.
        message: Why it is paused or failed, for the user; or a remark.
        problem: Why files are missing, for the user.
        step, steps, loss: Of the optimisation; `loss` of the last step.
        seconds: Spent on steps, over all sessions.
        created, touched: Unix times.
        files: Paths in `files/`, by what they are: `glb`, `obj`, `ply`, `mp4`, `asset`, `run`.
        made_at: The step of the run at which each of them was made, or turned out to be impossible.
        facts: Of the mesh and the files, for the user.
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
    facts: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """One run of a store.

    Args:
        path: Its folder, which exists.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def run(self) -> Path:
        """Where `HiFARun.save` writes."""
        return self.path / RUN

    @property
    def started(self) -> bool:
        """There is a saved run to continue."""
        return is_saved_in(self.run)

    @property
    def files(self) -> Path:
        folder = self.path / FILES
        folder.mkdir(exist_ok=True)
        return folder

    def read(self) -> Record:
        """
        Raises:
            UnknownRunError: If the record is gone or damaged.
        """
        try:
            facts = json.loads((self.path / RECORD).read_text())
            request = facts.pop("request")
            request["view_seeds"] = tuple(request["view_seeds"])
            return Record(Request(**request), **facts)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UnknownRunError(f"The record of this run is gone or damaged ({type(error).__name__}).") from error

    def write(self, record: Record, **changes: Any) -> Record:
        """Write the record with changes, atomically; returns it."""
        record = replace(record, touched=time.time(), **changes)
        write_text_atomically(self.path / RECORD, json.dumps(asdict(record)))
        return record

    def previews(self) -> dict[str, str]:
        """The last pictures as data URIs by the name of what they show; empty if there are none yet."""
        try:
            return json.loads((self.path / PREVIEWS).read_text())
        except (OSError, ValueError):
            return {}

    def request_stop(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # cleaned up in the meantime
            (self.path / STOP).touch()

    def clear_stop(self, patience: float = 10.0) -> None:
        """Forget that it was stopped, to go on with it. The Stop of a run that is going on stays.

        Raises:
            BusyRunError, UnknownRunError: See `locked`.
        """
        with self.locked(patience):
            (self.path / STOP).unlink(missing_ok=True)

    @property
    def stop_requested(self) -> bool:
        """Also when the folder is gone: nobody waits for the result any more."""
        return (self.path / STOP).exists() or not self.path.exists()

    def put_off_files(self) -> None:
        """Leave the files that are being made for later."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / LATER).touch()

    def want_files(self) -> None:
        (self.path / LATER).unlink(missing_ok=True)

    @property
    def files_put_off(self) -> bool:
        return (self.path / LATER).exists()

    @property
    def busy(self) -> bool:
        """Somebody works on it; a process lets go when it ends, however it ends."""
        try:
            with self.locked(0, fcntl.LOCK_SH):  # others that only look are not in the way
                return False
        except BusyRunError:
            return True

    @contextlib.contextmanager
    def locked(self, patience: float = 10.0, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Hold the run alone. The lock is of the file system, so it falls with the process.

        Args:
            patience: Seconds to wait for somebody else.
            kind: `LOCK_SH` of `fcntl`: hold it together with others who do.

        Raises:
            BusyRunError: If it is still taken then.
            UnknownRunError: If the folder is gone.
        """
        try:
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UnknownRunError("This run was cleaned up. Start a new one.") from error
        try:
            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(handle, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise BusyRunError(
                            "Something goes on with this run, here or in another window. Stop it, or wait."
                        ) from error
                    time.sleep(0.05)
            yield
        finally:
            # Not by closing alone: a forked worker that lives on has the handle too.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def size(self) -> int:
        """Bytes of everything in it."""
        total = 0
        for file in self.path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # somebody works on the run
                total += file.stat().st_size if file.is_file() else 0
        return total


class RunStore:
    """All runs.

    Args:
        root: Their folder; made if it is not there, readable by its owner only.
        max_age: Seconds that a run is kept after it was touched last.
        max_bytes: What all runs may take; the ones touched longest ago go first.
    """

    def __init__(self, root: Path, max_age: float = 7 * DAY, max_bytes: int = 20 * 10**9):
        self.root, self.max_age, self.max_bytes = Path(root), max_age, max_bytes
        self.served = Served(folder_for(self.root))
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweeping, self._swept = threading.Lock(), 0.0

    def create(self, request: Request) -> RunFolder:
        """A new run; old ones may go to make room.

        Raises:
            OSError: If the disk is full.
        """
        self.sweep()
        folder = RunFolder(self.root / secrets.token_urlsafe(16))
        folder.path.mkdir(mode=0o700)
        folder.write(Record(request))
        return folder

    def open(self, run_id: Any) -> RunFolder:
        """The run with an id, from wherever it comes.

        Raises:
            UnknownRunError: If there is none, or this is no id.
        """
        if not isinstance(run_id, str) or not ID.fullmatch(run_id) or not (self.root / run_id / RECORD).is_file():
            raise UnknownRunError(
                f"There is no run with this address any more: runs are kept for {self.max_age / DAY:g} days. "
                "Start a new one."
            )
        return RunFolder(self.root / run_id)

    def sweep(self, now: bool = False) -> list[str]:
        """Delete what is too old or too much, but nothing that somebody is working on; returns the ids.

        Args:
            now: Also if the last time is not long ago.
        """
        with self._sweeping:
            if not now and time.monotonic() - self._swept < SWEEP_SECONDS:
                return []
            self._swept = time.monotonic()
            with contextlib.suppress(OSError):  # that must not keep anybody from a run
                self.served.sweep()
            return self._sweep()

    def _sweep(self) -> list[str]:
        runs = []
        for path in self.root.iterdir():
            if ID.fullmatch(path.name):
                with contextlib.suppress(OSError):  # another process sweeps too
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
    """Delete a run unless somebody is working on it."""
    try:
        with folder.locked(0):
            shutil.rmtree(folder.path, ignore_errors=True)
    except (BusyRunError, UnknownRunError):
        return False
    return True
