"""Image-guided hallucination (HiFA appendix A.5) on Toybox: shape from a picture, another color from the prompt.

    python -m benchmarks.hallucination --figure hallucination.png

Each of eight pictures of different kinds is combined with a prompt for the same kind in another color. At first,
generated views of the picture guide a run. Their weight fades to zero, and then only the prompt guides the run. The
judge (`benchmarks.judge`) classifies 8 views of each asset, as in `benchmarks.text_to_3d`. The last line printed is
one JSON object. Shares are shares of views:

    kind_and_color    views with the kind of the picture and the color of the prompt; `kind` and `color` count each
                       property alone
    old_color         views with the color of the picture
    silhouette_iou     mean intersection over union of the silhouettes of the asset and of the pictured object from the
                       same cameras
    seconds            mean wall-clock time of an asset's optimization, without the generation of views
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from hifa import HiFAAsset, HiFAConfig, HiFAPipeline
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
    """A picture of a `kind` in `color`, and the wanted color."""

    kind: str
    color: str
    wanted: str
    scene: world.Scene

    @property
    def prompt(self) -> str:
        return world.caption(world.Scene(self.kind, self.wanted, None, None, shape=None))


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
    """Render the true views of the object at the cameras of the ring, to replace the hallucinated views."""
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
    if true:
        source = {"views": true_views(task, config.bound, config.given_size)}
    else:
        source = {"image": photo_of(task), "elevation_deg": PHOTO_ELEVATION}
    run = pipe.start(task.prompt, seed=0, config=config, **source)
    for _ in pipe.advance(run):
        pass
    return run.asset(), run.views


def silhouette_iou(asset: HiFAAsset, task: Task) -> float:
    """Return the mean silhouette IoU of the asset and the pictured object over the judge's cameras."""
    overlaps = []
    for azimuth in AZIMUTHS:
        ours = asset.render(asset.camera(azimuth, ELEVATION), SIZE).opacity.numpy() > 0.5
        theirs = render(task.scene.shape, orbit_pose(azimuth, ELEVATION, CAMERA_RADIUS), SIZE, FOV_DEG).mask > 0.5
        overlaps.append((ours & theirs).sum() / max((ours | theirs).sum(), 1))
    return float(np.mean(overlaps))


def task_row(task: Task, verdict: Verdict, iou: float, seconds: float) -> dict:
    """Return all results of one asset, given the judge's verdict on its views."""
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
    """Draw one row per task: picture, prompt and verdict, the first given view, and the asset from 8 sides."""
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
    judge = load_judge(arguments.judge)  # fails early, before the long part
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
        if arguments.figure is not None:  # after each task, so that an interrupted benchmark leaves a figure
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
    parser.add_argument("--image-guidance-end", type=float, default=0.4, metavar="SHARE")
    parser.add_argument("--limit", type=int, help="number of tasks, for a trial")
    parser.add_argument("--steps", type=int, help="steps per run, for a trial; default: the preset's")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
