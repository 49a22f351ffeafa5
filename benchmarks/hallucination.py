"""Image-guided hallucination (HiFA appendix A.5) on Toybox: the shape of a picture with the color of a prompt.

    python -m benchmarks.hallucination --figure hallucination.png

Eight pictures show objects of different kinds. The prompt of each run names the same kind in another color. Generated
views of the picture guide the first part of the run. Their weight decreases to zero, so only the prompt guides the
rest of the run. The judge (`benchmarks.judge`) classifies 8 views of each asset, as in `benchmarks.text_to_3d`. The
last line printed is one JSON object:

    kind_and_color     share of views with the kind of the picture and the color of the prompt
    kind, color        share of views with the kind of the picture; share of views with the color of the prompt
    old_color          share of views with the color of the picture
    silhouette_iou     mean intersection over union of the silhouettes of the asset and of the object in the picture
    seconds            mean wall-clock time to optimize an asset, without the generation of views
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline, Photo
from hifa.multiview.given_views import GivenViews, ring_cameras
from hifa.toybox import world
from hifa.toybox.render import orbit_pose, render
from hifa.toybox.training.dataset import CAMERA_RADIUS, FOV_DEG, SIZE

from .judge import COLORS, JUDGE, KINDS, Verdict, load_judge
from .text_to_3d import AZIMUTHS, ELEVATION, render_views, share


COUNT = 8
SCENE_SEED = 14_000_000  # not used in training, see benchmarks.text_to_3d
PHOTO_ELEVATION, PHOTO_PIXELS = 20.0, 256
WHITE = (1.0, 1.0, 1.0)


class Task(NamedTuple):
    """A picture of an object of `kind` in `color`, and the `wanted` color of the prompt."""

    kind: str
    color: str
    wanted: str
    scene: world.Scene

    @property
    def prompt(self) -> str:
        return world.caption(world.make_scene(self.kind, self.wanted))


def choose_tasks(count: int = COUNT, seed: int = 0) -> list[Task]:
    """Choose tasks with different kinds and different wanted colors."""
    rng = np.random.default_rng([SCENE_SEED, seed])
    kinds, wanted = rng.permutation(KINDS)[:count], rng.permutation(COLORS)[:count]
    tasks = []
    for kind, new in zip(map(str, kinds), map(str, wanted), strict=True):
        old = str(rng.choice([color for color in COLORS if color != new]))
        tasks.append(Task(kind, old, new, world.make_scene(kind, old, rng)))
    return tasks


def photo_of(task: Task) -> PIL.Image.Image:
    """Render the input picture: the object from its front, on white."""
    pose = orbit_pose(0, PHOTO_ELEVATION, CAMERA_RADIUS)
    color = render(task.scene.shape, pose, PHOTO_PIXELS, FOV_DEG, WHITE).color
    return PIL.Image.fromarray((color * 255).round().astype(np.uint8))


def true_views(task: Task, bound: float, size: int) -> GivenViews:
    """Render the object at the cameras of the ring. These true views replace the hallucinated views."""
    cameras = ring_cameras(bound)
    seen = [
        render(task.scene.shape, orbit_pose(c.azimuth_deg, c.elevation_deg, c.radius), size, c.fov_deg, WHITE)
        for c in cameras
    ]
    color, mask = (
        torch.from_numpy((np.stack([getattr(view, name) for view in seen]) * 255).round().astype(np.uint8))
        for name in ("color", "mask")
    )
    return GivenViews(color, mask, cameras)


def make_asset(pipe: HiFAPipeline, task: Task, config: HiFAConfig, true: bool) -> tuple[HiFAAsset, GivenViews]:
    """Run a hallucination from seed 0. Return the asset and the views that the run started with."""
    source: dict[str, Any]
    if true:
        source = {"views": true_views(task, config.bound, config.given_size)}
    else:
        source = {"image": Photo(photo_of(task), PHOTO_ELEVATION)}
    run = pipe.start(task.prompt, seed=0, config=config, **source)
    for _ in pipe.advance(run):
        pass
    assert run.views is not None
    return run.asset(), run.views


def silhouette_iou(asset: HiFAAsset, task: Task) -> float:
    """Return the mean silhouette IoU of the asset and the object in the picture, over the eight judged views."""
    overlaps = []
    for azimuth in AZIMUTHS:
        ours = asset.render(asset.camera(azimuth, ELEVATION), SIZE).opacity.numpy() > 0.5
        theirs = render(task.scene.shape, orbit_pose(azimuth, ELEVATION, CAMERA_RADIUS), SIZE, FOV_DEG).mask > 0.5
        overlaps.append((ours & theirs).sum() / max((ours | theirs).sum(), 1))
    return float(np.mean(overlaps))


def task_row(task: Task, verdict: Verdict, iou: float, seconds: float) -> dict:
    """Return all results of one asset. The verdict is that of the judge on the views of the asset."""
    kinds, colors = [KINDS[i] for i in verdict.kind.tolist()], [COLORS[i] for i in verdict.color.tolist()]
    return {
        "picture": f"{task.color} {task.kind}",
        "prompt": task.prompt,
        "kinds": kinds,
        "colors": colors,
        "kind": share([kind == task.kind for kind in kinds]),
        "color": share([color == task.wanted for color in colors]),
        "kind_and_color": share([pair == (task.kind, task.wanted) for pair in zip(kinds, colors, strict=True)]),
        "old_color": share([color == task.color for color in colors]),
        "silhouette_iou": round(iou, 4),
        "seconds": round(seconds, 1),
    }


def contact_sheet(rows: list[dict], strips: list[np.ndarray], side: int) -> PIL.Image.Image:
    """Draw one row per task: name of the picture, prompt, verdict, first given view, and 8 views of the asset."""
    text = 190
    sheet = PIL.Image.new("RGB", (text + strips[0].shape[1], len(rows) * side), "white")
    draw, bold, plain = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(12)
    for index, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        y, right = index * side, row["kind_and_color"]
        draw.text((8, y + 10), row["picture"], "gray", plain)
        draw.text((8, y + 30), row["prompt"], "black", bold)
        words = f"{round(right * len(AZIMUTHS))} of {len(AZIMUTHS)} views right"
        draw.text((8, y + 52), words, "darkgreen" if right == 1 else "firebrick", plain)
        sheet.paste(PIL.Image.fromarray(strip), (text, y))
    return sheet


def strip_of(asset: HiFAAsset, views: GivenViews, side: int) -> np.ndarray:
    """Return the first given view and 8 views of the asset: `(side, 9 side, 3)` uint8."""
    first = PIL.Image.fromarray(views.color[0].numpy()).resize((side, side))
    seen = [asset.render(asset.camera(azimuth, ELEVATION), side).color.numpy() for azimuth in AZIMUTHS]
    return np.concatenate([np.asarray(first), *((view * 255).round().astype(np.uint8) for view in seen)], 1)


def run(arguments: argparse.Namespace) -> dict:
    """Measure all tasks and write the figure."""
    judge = load_judge(arguments.judge)  # load first, so that a missing judge fails before the long runs
    pipe = HiFAPipeline.from_pretrained()
    changes = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    config = HiFAConfig.guided(image_guidance_end=arguments.image_guidance_end, **changes)
    tasks, rows, strips = choose_tasks()[: arguments.limit], [], []
    for number, task in enumerate(tasks):
        asset, views = make_asset(pipe, task, config, arguments.true_views)
        verdict = judge.verdict(render_views(asset, number).pictures)
        rows.append(task_row(task, verdict, silhouette_iou(asset, task), asset.metadata["seconds"]))
        strips.append(strip_of(asset, views, arguments.side))
        print(f"{number + 1} of {len(tasks)}: {json.dumps(rows[-1])}", flush=True)
        if arguments.figure is not None:  # write after each task, so that an interrupted benchmark leaves a figure
            arguments.figure.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(rows, strips, arguments.side).save(arguments.figure)
    names = ("kind_and_color", "kind", "color", "old_color", "silhouette_iou", "seconds")
    return {"assets": len(rows), **{name: share([row[name] for row in rows]) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, default=JUDGE, help="folder of another judge")
    parser.add_argument("--figure", type=Path, help="write a contact sheet")
    parser.add_argument("--side", type=int, default=96, help="pixels per side of a view on the contact sheet")
    parser.add_argument("--true-views", action="store_true", help="use true views instead of hallucinated ones")
    parser.add_argument("--image-guidance-end", type=float, default=0.4, metavar="FRACTION")
    parser.add_argument("--limit", type=int, help="number of tasks, for a trial")
    parser.add_argument("--steps", type=int, help="steps per run, for a trial; default: the preset's")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
