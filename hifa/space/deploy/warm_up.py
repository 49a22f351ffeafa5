"""Warm-up of the app: loops are compiled and modules imported, so that the first visitor does not wait for this."""

import contextlib
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

from ...export import EmptyFieldError
from ...multiview import ViewRing
from ...optimization.run import HiFARun
from ...pipeline_hifa import HiFAPipeline
from ..jobs.models import RECONSTRUCTION_PRESETS, Prior
from ..jobs.previews import snapshot
from ..jobs.step_times import Timings, work_key


PROMPT = "a red ball"  # in Toybox's vocabulary
STEPS = 4


def warm_up(prior: Prior, pipe: HiFAPipeline, timings: Timings) -> None:
    """Optimize a few steps for each tab, export the files of one run, and discard all results.

    This takes some seconds, and longer in a fresh environment, where loops are compiled and cached. The measured step
    times are the first estimates that visitors see.

    Args:
        prior: Prior of the runs.
        pipe: Pipeline of the prior.
        timings: Store for the measured step times.
    """
    # Render at full size from the start, so that the first estimates are too long rather than too short.
    settings = {"seed": 0, "num_inference_steps": STEPS, "growth_end": 0.0}
    run = pipe.start(PROMPT, **settings)
    seconds = {"text": step_seconds(pipe, run)}
    balls = [drawn_ball()] * ViewRing().num_views
    for kind, prompt in (("image", None), ("hallucination", PROMPT)):
        seconds[kind] = step_seconds(pipe, pipe.start(prompt, views=balls, hallucinated=True, **settings))
    for preset in RECONSTRUCTION_PRESETS:
        timings.guess(work_key("image", "", preset.settings), seconds["image"])
    for kind in ("text", "hallucination"):
        for preset in prior.presets_for(kind):
            timings.guess(work_key(kind, prior.key, preset.settings), seconds[kind])
    with tempfile.TemporaryDirectory() as place:
        run.save(Path(place) / "run")
        asset = run.asset()
        asset.export_video(Path(place) / "turntable.mp4", num_frames=2, size=32)
        with contextlib.suppress(EmptyFieldError):  # there may be no surface after so few steps
            asset.export_mesh(Path(place) / "mesh.glb", resolution=32, texture_size=64)


def step_seconds(pipe: HiFAPipeline, run: HiFARun) -> float:
    """Return the seconds of the shortest step of a run, including a preview.

    The first step takes longer because loops are compiled. Other work at the start of the server may slow down some of
    the following steps.
    """
    times = [time.monotonic()]
    for _ in pipe.advance(run):
        snapshot(run, 0.0, size=16)
        times.append(time.monotonic())
    return min(later - earlier for earlier, later in pairwise(times))


def drawn_ball(size: int = 64) -> PIL.Image.Image:
    """Draw a view of an object that looks the same from all sides: a red disk on white."""
    image = PIL.Image.new("RGB", (size, size), "white")
    PIL.ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="red")
    return image
