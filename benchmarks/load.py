"""Load test of the app with many clients and a server that is killed. Counts lost runs and measures memory.

    python -m benchmarks.load [--minutes 5] [--clients 8] [--kills 2]

Each client starts Toybox runs with its own prompts. Every fourth client uses its own picture instead of prompts.
Clients stop, leave and resume their runs at random. At equal intervals, the benchmark kills the server (SIGKILL) and
restarts it. At the end, the benchmark exports missing files and checks every run that a client has started:

- The run exists, and has the prompt, the picture and the seed of its client.
- The step of the run is not lower than the last saved step that the client observed.
- All files of the run exist.

The last line printed is one JSON object:

    runs         number of runs that exist at the end
    of_pictures  number of runs that clients requested with a picture
    made_late    number of runs with missing files at the end, because the client left or the server was killed
    fileless     number of runs whose missing files could not be exported at the end
    lost         number of runs that are missing, or whose step is lower than the last saved step
    mixed        number of mix-ups: responses or runs with the request of another client
    actions      counts of the actions and the errors of all clients. Errors are expected: the server is unavailable
                 for a while after a kill
    memory_mb    resident memory every 30 seconds, one list per server process
    memory_mb_a_minute
                 growth of the memory per minute, one value per server process. The first minute, in which the server
                 loads models, does not count. Use --kills 0 and a longer test to see whether memory stays flat

The exit code is 1 if a run is lost, mixed up or without files, or if there are no runs.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import gradio_client
import numpy as np
from gradio_client.client import Job
from PIL import Image

from hifa.space.jobs.exports import missing
from hifa.space.jobs.gpu_lease import LeaseTask, Progress
from hifa.space.jobs.run_store import PICTURE, RunFolder, RunStore
from hifa.space.jobs.step_times import Timings
from hifa.space.jobs.worker import Worker, current
from hifa.space.ui.image_inputs import sample_pictures
from hifa.space.ui.validation import read_photo
from hifa.storage.run_folder import read_metadata
from hifa.toybox.vocabulary import COLORS, KIND_WORDS

from .app_server import Server


WATCH = 2.0  # seconds between readings of the memory
SAVED_EVERY = 6.0  # seconds between two saves, with a margin. A kill may lose the steps since the last save


@dataclass
class Told:
    """State of a run, as the app reported it to the client."""

    asked: tuple[str, int]  # prompt and seed
    step: int = 0
    seen: float = 0.0
    saved: int = 0


@dataclass
class Visitor:
    """A client, with a record of its runs and actions."""

    number: int
    picture: Path | None = None
    runs: dict[str, Told] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)
    mixed: list[str] = field(default_factory=list)

    def count(self, action: str) -> None:
        self.actions[action] = self.actions.get(action, 0) + 1


def visit(visitor: Visitor, server: Server, store: RunStore, end: float) -> None:
    """Start, stop, leave and resume runs until `end`."""
    dice = random.Random(visitor.number)
    while time.monotonic() < end:
        try:
            client = gradio_client.Client(server.url, verbose=False, analytics_enabled=False)
            if visitor.runs and dice.random() < 0.5:
                run_id = dice.choice(list(visitor.runs))
                asked = visitor.runs[run_id].asked
                visitor.count("resume")
                job = client.submit(run_id, api_name="/resume")
            else:
                run_id = None
                visitor.count("start")
                job, asked = start(visitor, client, dice)
            patience = min(time.monotonic() + dice.uniform(5, 40), end)
            run_id, done = follow(visitor, server, store, job, run_id, asked, patience)
            if done:
                visitor.count("ended")
                continue
            if run_id is None:  # still in the queue
                visitor.count("leave the queue")
                job.cancel()
                continue
            if dice.random() < 0.5:
                visitor.count("stop")
                client.predict(run_id, api_name="/stop")
                follow(visitor, server, store, job, run_id, asked, time.monotonic() + 120)
            else:
                visitor.count("leave")
                job.cancel()
        except Exception as error:  # the server is down, the queue is full, or another client has the run
            visitor.count(f"error {type(error).__name__}")
            time.sleep(dice.uniform(0.5, 2))


def start(visitor: Visitor, client: gradio_client.Client, dice: random.Random) -> tuple[Job, tuple[str, int]]:
    """Submit a new run. Return the job, and the run's prompt and seed."""
    seed = 1000 * visitor.number + len(visitor.runs)
    if visitor.picture is not None:
        steps = dice.choice([30, 100])
        picture = gradio_client.handle_file(visitor.picture)
        return client.submit(picture, 20, seed, steps, api_name="/image_to_3d"), ("", seed)
    prompt = f"a {list(COLORS)[visitor.number % len(COLORS)]} {dice.choice(list(KIND_WORDS))}"
    return client.submit(prompt, seed, dice.choice([20, 60, 200]), api_name="/text_to_3d"), (prompt, seed)


def follow(
    visitor: Visitor,
    server: Server,
    store: RunStore,
    job: Job,
    run_id: str | None,
    asked: tuple[str, int],
    patience: float,
) -> tuple[str | None, bool]:
    """Process the updates of a call until the call ends or `time.monotonic` reaches `patience`.

    gradio_client does not report a killed server, so this function checks the server itself.

    Returns:
        The ID of the run, or `None` if the run is still in the queue, and whether the call has ended.

    Raises:
        ConnectionError: If the server was killed during the call.
    """
    seen, life = 0, server.lives
    while True:
        over, outputs = job.done(), job.outputs()
        for status, *_ in outputs[seen:]:
            if run_id is None:
                run_id = str(status["run_id"])
                visitor.runs[run_id] = Told(asked)
            take_in(visitor, run_id, status, store)
        seen = len(outputs)
        if over:
            if (error := job.exception()) is not None:
                raise error
            return run_id, True
        if server.lives != life:
            raise ConnectionError("The server was killed.")
        if time.monotonic() > patience:
            return run_id, False
        time.sleep(0.1)


def take_in(visitor: Visitor, run_id: str, status: dict, store: RunStore) -> None:
    told = visitor.runs[run_id]
    seed = told.asked[1]
    if status["run_id"] != run_id or status["seed"] != seed:
        visitor.mixed.append(f"{run_id}: received {status['run_id']}, seed {status['seed']} instead of {seed}")
    told.step = max(told.step, status["step"])
    folder = store.root / run_id / "run"
    if time.monotonic() - told.seen > SAVED_EVERY and (folder / "run.safetensors").exists():
        told.saved, told.seen = max(told.saved, read_metadata(folder)["step"]), time.monotonic()


def check(visitors: list[Visitor], store: RunStore) -> tuple[int, int, int]:
    """Return the number of existing runs, the number of lost runs, and the number of mix-ups."""
    there = lost = mixed = 0
    for visitor in visitors:
        mixed += len(visitor.mixed)
        for run_id, told in visitor.runs.items():
            try:
                folder = store.open(run_id)
                request = folder.read().request
                mixed += (request.prompt, request.seed) != told.asked or not is_of_picture(folder, visitor.picture)
                metadata = read_metadata(folder.run) if folder.started else {"step": 0}
                made_of = (metadata.get("prompt") or "", metadata["seed"]) if folder.started else told.asked
                mixed += made_of != told.asked
                lost += metadata["step"] < told.saved
                there += 1
            except ValueError:
                lost += 1
    return there, lost, mixed


def is_of_picture(folder: RunFolder, picture: Path | None) -> bool:
    """Return whether the run has exactly this picture. If `picture` is `None`, the run must have no picture."""
    if picture is None or not (folder.path / PICTURE).exists():
        return (picture is None) == (not (folder.path / PICTURE).exists())
    with Image.open(folder.path / PICTURE) as kept:
        share = folder.read().request.object_share
        return np.array_equal(np.asarray(kept), np.asarray(read_photo(str(picture), share).image))


def make_late(visitors: list[Visitor], store: RunStore) -> tuple[int, int]:
    """Export the missing files of all runs. Return the number of runs with missing files before and after."""
    worker = Worker(store, no_lease, limited=False, timings=Timings(store.root / "timings.json"))
    late = fileless = 0
    for run_id in (run_id for visitor in visitors for run_id in visitor.runs):
        try:
            folder = store.open(run_id)
        except ValueError:  # lost; counted in `check`
            continue
        if not missing(folder, current(folder, folder.read(), held=False)):
            continue
        late += 1
        *_, end = worker.make_files(folder)
        fileless += bool(end.missing)
    return late, fileless


def no_lease(task: LeaseTask) -> Generator[Progress, None, None]:
    raise RuntimeError("Making files must not request a GPU lease.")


def slope(values: list[float]) -> float | None:
    """Return the growth per minute, by least squares, without the first minute.

    Args:
        values: Readings `WATCH` seconds apart.

    Returns:
        The growth, or `None` if the readings cover less than two minutes.
    """
    rest = values[round(60 / WATCH) :]
    if len(rest) < 60 / WATCH:
        return None
    return round(float(np.polyfit(np.arange(len(rest)) * WATCH / 60, rest, 1)[0]), 1)


def every_half_minute(values: list[float]) -> list[int]:
    """Return rounded values at intervals of 30 seconds. The given values are `WATCH` seconds apart."""
    return [round(value) for value in values[:: round(30 / WATCH)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=2)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="hifa-load-")) / "runs"
    store, server = RunStore(root), Server(root)
    server.start()
    seconds = 60 * arguments.minutes
    began = time.monotonic()
    end = began + seconds
    pictures = sample_pictures()
    visitors = [
        Visitor(number, pictures[number // 4 % len(pictures)] if number % 4 == 3 else None)
        for number in range(arguments.clients)
    ]
    threads = [threading.Thread(target=visit, args=(visitor, server, store, end), daemon=True) for visitor in visitors]
    for thread in threads:
        thread.start()
    kills = [began + seconds * (k + 1) / (arguments.kills + 1) for k in range(arguments.kills)]
    memory: list[list[float]] = [[]]
    while time.monotonic() < end:
        time.sleep(WATCH)
        memory[-1].append(server.megabytes())
        if kills and time.monotonic() > kills[0]:
            kills.pop(0)
            server.kill()
            server.start()
            memory.append([])
    for thread in threads:
        thread.join(150)
    server.kill()
    there, lost, mixed = check(visitors, store)
    late, fileless = make_late(visitors, store)
    actions: dict[str, int] = {}
    for visitor in visitors:
        for action, count in visitor.actions.items():
            actions[action] = actions.get(action, 0) + count
    figures = {"clients": arguments.clients, "minutes": arguments.minutes, "kills": arguments.kills}
    figures |= {
        "runs": there,
        "of_pictures": sum(len(visitor.runs) for visitor in visitors if visitor.picture is not None),
        "lost": lost,
        "mixed": mixed,
        "made_late": late,
        "fileless": fileless,
        "actions": dict(sorted(actions.items())),
    }
    figures |= {
        "memory_mb": [every_half_minute(values) for values in memory],
        "memory_mb_a_minute": [slope(values) for values in memory],
    }
    print(json.dumps(figures))
    sys.exit(1 if lost or mixed or fileless or not there else 0)


if __name__ == "__main__":
    main()
