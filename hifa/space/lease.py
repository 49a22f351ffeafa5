"""What happens on a GPU for a bounded time: a run is read from its folder, advanced, and saved there again.

On ZeroGPU a lease is a forked process that gets pickled arguments and gives pickled news, and that is killed when it
takes longer than it said. So the state crosses by file, and a lease ends itself in time. Without ZeroGPU it is the
same generator, in the same process and without a deadline.
"""

import json
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ..hallucination import EMBEDDED_NOTE
from ..multiview import SyncDreamerPipeline, best_of_seeds, sheet
from ..optimisation import DivergedError
from ..pictures import prepare_picture
from ..pipeline_hifa import HiFAPipeline
from ..run import HiFARun
from ..saved import RunError
from ..state import write_text_atomically
from .beside import GivenUpError, halves, saying
from .errors import explain
from .priors import PriorShelf
from .sheets import Sheets
from .snapshot import snapshot
from .store import PICTURE, PREVIEWS, RunFolder


PREVIEW_SECONDS = 0.5  # from one preview to the next; a step comes on top, and a second must not pass
SAVE_SECONDS = 5.0  # between saves, or more if saving itself takes long
NEWS_SECONDS = 0.5  # without anything else to tell, the time is told
TURN_DEG_PER_SECOND = 9.0
FIRST_LEASE, LONGEST_LEASE = 30, 60  # seconds that are asked for; a short lease has a better place in ZeroGPU's queue
RESERVE = 8.0  # seconds of a lease that are left for saving and for handing back
STOPPED, FINISHED, DEADLINE, FAILED = "stopped", "finished", "deadline", "failed"


@dataclass(frozen=True)
class LeaseTask:
    """What to do; small, because it is pickled.

    Args:
        folder: Of the run.
        seconds: That were asked for; the lease ends before. `None`: as long as it takes.
    """

    folder: str
    seconds: float | None = None


@dataclass(frozen=True)
class News:
    """What a lease says while it works; small, because it is pickled.

    Args:
        text: What is going on, where it is no step.
        share: Of it that is done, [0, 1].
        step, steps, loss, seconds: As in `Record`.
        step_seconds: Wall time of a step of late, previews included; `None` before it is known.
        previews: See `snapshot`; `None` if there is no new one.
        end: Why the lease ends; empty while it goes on.
    """

    text: str = ""
    share: float = 0.0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    step_seconds: float | None = None
    previews: dict[str, str] | None = None
    end: str = ""


Lease = Callable[[LeaseTask], Iterator[News]]


def seconds_asked(task: LeaseTask) -> int:
    """The duration of a lease, as ZeroGPU asks for it."""
    return math.ceil(task.seconds or LONGEST_LEASE)


def lease_seconds(steps_left: int, step_seconds: float | None, setup_seconds: float) -> int:
    """How long the next lease should be: what the rest needs with a fifth more, if that is no more than allowed.

    Args:
        step_seconds: Measured in the leases before; `None` in the first.
        setup_seconds: From the start of a lease to its first step.
    """
    if step_seconds is None:
        return FIRST_LEASE
    return min(LONGEST_LEASE, math.ceil(setup_seconds + 1.2 * steps_left * step_seconds + RESERVE))


class Models:
    """What leases work with.

    Args:
        shelf: Of the priors.
        load_multiview: Makes views of a picture; asked for once, when it is needed.
    """

    def __init__(self, shelf: PriorShelf, load_multiview: Callable[[], SyncDreamerPipeline]):
        self.shelf = shelf
        # Hooks and timesteps of the model are shared: who makes views has it alone, also when nobody reads on.
        self.making_views, self._loading = threading.Lock(), threading.Lock()
        self._load, self._multiview = load_multiview, None

    def multiview(self) -> SyncDreamerPipeline:
        with self._loading:
            if self._multiview is None:
                self._multiview = self._load().to(self.shelf.device)
            return self._multiview


def make_lease(models: Models) -> Lease:
    """The work of a lease with these models."""

    def lease(task: LeaseTask) -> Iterator[News]:
        deadline = math.inf if task.seconds is None else time.monotonic() + task.seconds - RESERVE
        folder = RunFolder(Path(task.folder))
        try:
            prior = folder.read().request.prior
            pipe = yield from saying("Getting the models ready", lambda _: models.shelf.get(prior), telling)
            if not folder.started:
                end = yield from begin(models, pipe, folder, deadline)
                if end:
                    yield News(end=end)
                    return
            run = HiFARun.load(folder.run, models.shelf.device)
            yield from optimise(pipe, run, folder, deadline)
        except Exception as error:  # whatever it is, the user is told, and it need not be picklable
            yield News(text=explain(error), end=FAILED)

    return lease


def telling(text: str) -> News:
    return News(text=f"{text} …")


def begin(models: Models, pipe: HiFAPipeline, folder: RunFolder, deadline: float) -> Generator[News, None, str]:
    """Make the views if there is a picture, then a run at step 0; returns why it ended before that, or nothing."""
    request = folder.read().request
    views, note = None, ""
    if request.kind != "text":
        sheets = Sheets(folder.path)
        if not sheets.given and (missing := sheets.missing(request.view_seeds)):
            yield from saying("Loading the multi-view model", lambda _: models.multiview(), telling)
            for seed in missing:
                end = yield from make_sheet(models, folder, seed, deadline)
                if end:
                    return end
        if request.views_only:
            return FINISHED
        if not sheets.given and models.multiview().embedded:
            note = EMBEDDED_NOTE
        views = sheets.best()  # also an uploaded one: who has views of this ring has them from a model

    def start(_: threading.Event) -> HiFARun:
        with models.shelf.tokenizing:
            return pipe.start(
                request.prompt or None, request.negative_prompt, views=views, hallucinated=True, seed=request.seed,
                **request.settings,
            )  # fmt: skip

    run = yield from saying("Starting the run", start, telling)
    run.note = f"{run.note} {note}".strip()
    run.save(folder.run)
    return ""


def make_sheet(models: Models, folder: RunFolder, seed: int, deadline: float) -> Generator[News, None, str]:
    """Hallucinate the views of one seed, with news of every denoising step and, where one takes long, of the time;
    returns why it ended early, or nothing."""
    told: queue.Queue[tuple[int, int] | BaseException | None] = queue.Queue()
    given_up, began = threading.Event(), time.monotonic()

    def work() -> None:
        try:
            with models.making_views:
                _make_sheet(models.multiview(), folder, seed, given_up, told.put)
            told.put(None)
        except BaseException as error:  # raised again where it is read
            told.put(error)

    # The call cannot yield, so it works beside this generator.
    threading.Thread(target=work, daemon=True).start()
    step, steps, text = 0, 1, f"Views of seed {seed}"
    try:
        while True:
            if folder.stop_requested:
                return STOPPED
            if time.monotonic() > deadline and step < steps:  # what comes after the last step is short
                return DEADLINE
            try:
                done = told.get(timeout=NEWS_SECONDS)
            except queue.Empty:
                yield News(text=f"{text}, {halves(time.monotonic() - began)}", share=step / steps)
                continue
            if done is None:
                return ""
            if isinstance(done, BaseException):
                raise done
            step, steps = done
            text = f"Views of seed {seed}: denoising step {step} of {steps}"
            yield News(text=text, share=step / steps)
    finally:
        given_up.set()


def _make_sheet(
    multiview: SyncDreamerPipeline,
    folder: RunFolder,
    seed: int,
    given_up: threading.Event,
    tell: Callable[[tuple[int, int]], None],
) -> None:
    """The whole work on one sheet, which ends up in the folder. After the last step it is kept although nobody waits
    for it any more."""
    sheets, request, side = Sheets(folder.path), folder.read().request, multiview.image_size
    if given_up.is_set() or not sheets.missing((seed,)):  # waiting for the model, or made by one who was given up
        return
    with PIL.Image.open(folder.path / PICTURE) as picture:
        prepared = prepare_picture(picture, side, max(1, round(side * request.object_share))).image

    def watch(pipe: SyncDreamerPipeline, step: int, timestep: int, tensors: dict) -> dict:
        if given_up.is_set() and step + 1 < pipe.num_timesteps:
            raise GivenUpError
        tell((step + 1, pipe.num_timesteps))
        return {}

    found = best_of_seeds(
        multiview, prepared, request.elevation_deg, [seed], num_inference_steps=request.view_steps,
        callback_on_step_end=watch,
    )[0]  # fmt: skip
    images = [PIL.Image.fromarray(image) for image in (found.images * 255).round().byte().numpy()]
    if folder.path.exists():  # not cleaned up in the meantime
        sheets.add(seed, sheet(images), found.score)


def optimise(pipe: HiFAPipeline, run: HiFARun, folder: RunFolder, deadline: float) -> Iterator[News]:
    """Advance to the end, to Stop or to the deadline, with a picture twice a second and a save every few seconds."""
    started = shown = saved = time.monotonic()
    times, save_seconds = deque([started], maxlen=20), 0.0
    yield news_of(run, times, look(run, folder, 0.0))
    end = FINISHED
    try:
        for _ in pipe.advance(run):
            now = time.monotonic()
            times.append(now)
            if folder.stop_requested:
                end = STOPPED
                break
            if now + 3 * (now - times[0]) / (len(times) - 1) + save_seconds > deadline and not run.finished:
                end = DEADLINE
                break
            if now - shown > PREVIEW_SECONDS:
                yield news_of(run, times, look(run, folder, (now - started) * TURN_DEG_PER_SECOND))
                # From one to the next, but not one after the other where they take long.
                shown = max(now, time.monotonic() - PREVIEW_SECONDS / 2)
            if now - saved > max(SAVE_SECONDS, 10 * save_seconds):
                run.save(folder.run)
                saved = time.monotonic()
                save_seconds = saved - now
    except DivergedError:
        with suppress(RunError):  # a field that was spoilt from outside
            _save(run, folder)
        raise
    except BaseException:  # also when the reader has gone: nothing computed is lost
        _save(run, folder)
        raise
    _save(run, folder)
    yield news_of(run, times, look(run, folder, 0.0), end)


def _save(run: HiFARun, folder: RunFolder) -> None:
    if folder.path.exists():  # not cleaned up in the meantime
        run.save(folder.run)


def look(run: HiFARun, folder: RunFolder, azimuth_deg: float) -> dict[str, str]:
    """Pictures of the run, also kept in its folder for whoever opens it."""
    previews = snapshot(run, azimuth_deg)
    if folder.path.exists():
        write_text_atomically(folder.path / PREVIEWS, json.dumps(previews))
    return previews


def news_of(run: HiFARun, times: deque[float], previews: dict[str, str], end: str = "") -> News:
    step_seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 2 else None
    return News(
        text=run.note, step=run.step, steps=run.config.num_inference_steps,
        loss=run.losses[-1]["loss"] if run.losses else None, seconds=run.seconds, step_seconds=step_seconds,
        previews=previews, end=end,
    )  # fmt: skip
