"""What the first visitor would wait for: loops that are compiled and modules that are imported when first used."""

import contextlib
import tempfile
import time
from pathlib import Path

import PIL.Image
import PIL.ImageDraw

from ..export import EmptyFieldError
from ..multiview import ViewRing
from ..pipeline_hifa import HiFAPipeline
from ..run import HiFARun
from .priors import RECONSTRUCTION_PRESETS, Prior
from .snapshot import snapshot
from .timings import Timings, work_key


PROMPT = "a red ball"  # which Toybox knows
STEPS = 4


def warm_up(prior: Prior, pipe: HiFAPipeline, timings: Timings) -> None:
    """Make a run of a few steps in the way of each tab, and the files of one, and forget them: some seconds, and more
    in a fresh environment, where loops are compiled and cached. How long a step took is what first visitors are told.

    Args:
        pipe: Of the prior.
    """
    # At full size from the start: what is said to the first visitor is rather too long than too short.
    settings = {"seed": 0, "num_inference_steps": STEPS, "growth_end": 0.0}
    run = pipe.start(PROMPT, **settings)
    seconds = {"text": step_seconds(pipe, run)}
    balls = [drawn_ball()] * ViewRing().num_views
    for kind, prompt in (("image", None), ("hallucination", PROMPT)):
        seconds[kind] = step_seconds(pipe, pipe.start(prompt, views=balls, hallucinated=True, **settings))
    for preset in RECONSTRUCTION_PRESETS:
        timings.guess(work_key("image", "", preset.settings), seconds["image"])
    for kind in ("text", "hallucination"):
        for preset in prior.presets:
            timings.guess(work_key(kind, prior.key, preset.settings), seconds[kind])
    with tempfile.TemporaryDirectory() as place:
        run.save(Path(place) / "run")
        asset = run.asset()
        asset.export_video(Path(place) / "turntable.mp4", num_frames=2, size=32)
        with contextlib.suppress(EmptyFieldError):  # so early there need not be a surface
            asset.export_mesh(Path(place) / "mesh.glb", resolution=32, texture_size=64)


def step_seconds(pipe: HiFAPipeline, run: HiFARun) -> float:
    """Of the shortest step of a run, with a preview: the first one compiles, and what else the machine does while a
    server starts is soon over."""
    times = [time.monotonic()]
    for _ in pipe.advance(run):
        snapshot(run, 0.0, size=16)
        times.append(time.monotonic())
    return min(later - earlier for earlier, later in zip(times, times[1:], strict=False))


def drawn_ball(size: int = 64) -> PIL.Image.Image:
    """A view of an object that looks the same from everywhere."""
    image = PIL.Image.new("RGB", (size, size), "white")
    PIL.ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="red")
    return image
