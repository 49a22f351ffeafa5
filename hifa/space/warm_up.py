"""What the first visitor would wait for: loops that are compiled and modules that are imported when first used."""

import contextlib
import tempfile
import time
from pathlib import Path

from ..export import EmptyFieldError
from ..pipeline_hifa import HiFAPipeline
from .priors import Prior
from .snapshot import snapshot
from .timings import Timings, work_key


PROMPT = "a red ball"  # which Toybox knows
STEPS = 4


def warm_up(prior: Prior, pipe: HiFAPipeline, timings: Timings) -> None:
    """Make a run of a few steps and its files, and forget them: some seconds, and more in a fresh environment, where
    loops are compiled and cached. How long a step took is what the first visitor is told.

    Args:
        pipe: Of the prior.
    """
    # At full size from the start: what is said to the first visitor is rather too long than too short.
    run = pipe.start(PROMPT, seed=0, num_inference_steps=STEPS, growth_end=0.0)
    times = [time.monotonic()]
    for _ in pipe.advance(run):
        snapshot(run, 0.0, size=16)
        times.append(time.monotonic())
    # The shortest: the first one compiles, and what else the machine does while a server starts is soon over.
    step_seconds = min(later - earlier for earlier, later in zip(times, times[1:], strict=False))
    for preset in prior.presets:
        timings.guess(work_key("text", prior.key, preset.settings), step_seconds)
    with tempfile.TemporaryDirectory() as place:
        run.save(Path(place) / "run")
        asset = run.asset()
        asset.export_video(Path(place) / "turntable.mp4", num_frames=2, size=32)
        with contextlib.suppress(EmptyFieldError):  # so early there need not be a surface
            asset.export_mesh(Path(place) / "mesh.glb", resolution=32, texture_size=64)
