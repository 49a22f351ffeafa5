"""What the first visitor would wait for: loops that are compiled and modules that are imported when first used."""

import contextlib
import tempfile
from pathlib import Path

from ..export import EmptyFieldError
from ..pipeline_hifa import HiFAPipeline
from .snapshot import snapshot


PROMPT = "a red ball"  # which Toybox knows


def warm_up(pipe: HiFAPipeline) -> None:
    """Make a run of two steps and its files, and forget them: a few seconds, and more in a fresh environment, where
    loops are compiled and cached."""
    run = pipe.start(PROMPT, seed=0, num_inference_steps=2)
    for _ in pipe.advance(run):
        snapshot(run, 0.0, size=16)
    with tempfile.TemporaryDirectory() as place:
        run.save(Path(place) / "run")
        asset = run.asset()
        asset.export_video(Path(place) / "turntable.mp4", num_frames=2, size=32)
        with contextlib.suppress(EmptyFieldError):  # so early there need not be a surface
            asset.export_mesh(Path(place) / "mesh.glb", resolution=32, texture_size=64)
