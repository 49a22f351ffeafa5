"""Shape of the assets of `benchmarks.text_to_3d`, compared with the true objects of the Toybox world.

    python -m benchmarks.geometry --output-dir benchmarks-cache/text-to-3d --figure geometry.jpg

Assets in the output folder are reused if they have the same prior and settings. The true object of a prompt is the
object of the Toybox world with average proportions. Assets and true objects are rendered in 16 views: azimuths every
45 degrees at elevations of 5 and 35 degrees, radius 2.5, field of view 40 degrees, 96x96 pixels. The last line printed
is one JSON object with means over all prompts:

    iou        intersection over union of the silhouettes (opacity above 0.5)
    normals    mean angle between the normals in degrees, over pixels where the asset and the true object are opaque
               and the asset has a normal
    depth      mean absolute depth difference in world units, over pixels where the asset and the true object are
               opaque
    haze       share of pixels with an opacity between 0.1 and 0.9

- `--tuning` uses six other prompts, for tuning settings.
- `--prompts` uses the given objects, such as `red:cube`.
- `--floor` measures the best result of the field. The true objects of two prompts are reconstructed from 32 true views
  of 96x96 pixels.
- `--ceiling` measures the best result of a perfect prior. Objects of the world with random proportions replace the
  assets.
- `--set NAME=VALUE` sets any field of `HiFAConfig`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hifa import HiFAAsset, HiFAPipeline
from hifa.cameras import Camera, camera_to_world
from hifa.export import normal_to_rgb
from hifa.multiview.given_views import GivenViews
from hifa.toybox import world
from hifa.toybox.render import Picture, render
from hifa.toybox.shapes import Shape

from .text_to_3d import Prompt, choose_prompts, fingerprint, make_asset


SIZE, RADIUS, FOV_DEG = 96, 2.5, 40.0
CAMERAS = tuple(
    Camera(float(azimuth), elevation, RADIUS, FOV_DEG) for elevation in (5.0, 35.0) for azimuth in range(0, 360, 45)
)
TUNING = (
    ("teddy bear", "brown"), ("car", "blue"), ("chair", "red"), ("duck", "yellow"), ("sailboat", "green"),
    ("rabbit", "pink"),
)  # fmt: skip
FLOOR = (("teddy bear", "brown"), ("chair", "red"))
CEILING_SEED, CEILING_OBJECTS = 14_000_000, 4
NAMES = ("iou", "normals", "depth", "haze")


def true_view(shape: Shape, camera: Camera, background: float = 1.0) -> Picture:
    """Render one view of an object of the world."""
    return render(shape, camera_to_world(camera).numpy(), SIZE, camera.fov_deg, (background, background, background))


def compare(opacity: np.ndarray, normals: np.ndarray, depth: np.ndarray, truth: Picture) -> dict[str, float]:
    """Compare one view with the truth.

    Args:
        opacity: `(H, W)`.
        normals: `(H, W, 3)`.
        depth: `(H, W)`.
        truth: Render of the true object.

    Returns:
        The measures of the view.
    """
    ours, theirs = opacity > 0.5, truth.mask > 0.5
    both = ours & theirs
    seen = both & (np.abs(normals).sum(-1) > 0)
    cosine = (normals[seen] * truth.normals[seen]).sum(-1).clip(-1, 1)
    return {
        "iou": float(both.sum() / max((ours | theirs).sum(), 1)),
        "normals": float(np.degrees(np.arccos(cosine)).mean()) if seen.any() else 90.0,
        "depth": float(np.abs(depth - truth.depth)[both].mean()) if both.any() else 1.0,
        "haze": float(((opacity > 0.1) & (opacity < 0.9)).mean()),
    }


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in NAMES}


def measure_asset(asset: HiFAAsset, shape: Shape) -> dict[str, float]:
    """Return the means over the 16 views of an asset."""
    rows = []
    for camera in CAMERAS:
        picture = asset.render(camera, SIZE)
        opacity, normals, depth = (v.cpu().numpy() for v in (picture.opacity, picture.normals, picture.depth))
        rows.append(compare(opacity, normals, depth, true_view(shape, camera)))
    return means(rows)


def measure_ceiling(prompts: list[Prompt]) -> dict[str, float]:
    """Return the measures of objects of the world with random proportions, which replace the assets."""
    rows = []
    for number, prompt in enumerate(prompts):
        truth = world.make_scene(prompt.kind, prompt.color).shape
        for index in range(CEILING_OBJECTS):
            rng = np.random.default_rng([CEILING_SEED, number, index])
            other = world.make_scene(prompt.kind, prompt.color, rng).shape
            views = [(true_view(other, camera), true_view(truth, camera)) for camera in CAMERAS]
            rows += [compare(ours.mask, ours.normals, ours.depth, theirs) for ours, theirs in views]
    return means(rows)


def true_views(shape: Shape, count: int = 32) -> GivenViews:
    """Render views from all sides. The cameras lie on a spiral with equal steps in height."""
    height = np.sin(np.radians(-10)) + (np.arange(count) + 0.5) / count * (1 - np.sin(np.radians(-10)))
    cameras = tuple(
        Camera(index * 137.508 % 360, float(np.degrees(np.arcsin(z))), RADIUS, FOV_DEG)
        for index, z in enumerate(height)
    )
    pictures = [true_view(shape, camera) for camera in cameras]
    color = np.stack([(picture.color * 255).round() for picture in pictures]).astype(np.uint8)
    mask = np.stack([(picture.mask * 255).round() for picture in pictures]).astype(np.uint8)
    return GivenViews(torch.from_numpy(color), torch.from_numpy(mask), cameras)


def measure_floor(pipe: HiFAPipeline, settings: dict) -> dict[str, dict[str, float]]:
    """Reconstruct true objects. Return the measures by prompt."""
    rows = {}
    for kind, color in FLOOR:
        shape = world.make_scene(kind, color).shape
        run = pipe.start(None, views=true_views(shape), seed=0, **settings)
        for _ in pipe.advance(run):
            pass
        rows[f"{color} {kind}"] = {**measure_asset(run.asset(), shape), "seconds": round(run.seconds, 1)}
        print(f"{color} {kind}: {rows[f'{color} {kind}']}", flush=True)
    return rows


def normals_sheet(assets: list[HiFAAsset], titles: list[str], side: int = 112) -> Image.Image:
    """Draw two rows per asset: the colors of eight views, and the normals of the same views."""
    text, views = 170, [camera for camera in CAMERAS if camera.elevation_deg == 35.0]
    sheet = Image.new("RGB", (text + len(views) * side, len(assets) * 2 * side), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, (asset, title) in enumerate(zip(assets, titles, strict=True)):
        draw.multiline_text((6, index * 2 * side + 12), title, "black", font)
        for column, camera in enumerate(views):
            picture = asset.render(camera, side)
            normals = normal_to_rgb(picture.normals.cpu().numpy(), picture.opacity.cpu().numpy())
            for row, pixels in enumerate((picture.color.cpu().numpy(), normals)):
                tile = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
                sheet.paste(tile, (text + column * side, (2 * index + row) * side))
    return sheet


def run(arguments: argparse.Namespace) -> dict:
    pipe = HiFAPipeline.from_pretrained()
    settings = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in arguments.set)}
    if arguments.floor:
        return measure_floor(pipe, settings)
    own = [tuple(text.split(":", 1))[::-1] for text in arguments.prompts] or TUNING
    chosen = [Prompt(kind, color, not world.is_held_out(kind, color)) for kind, color in own]
    prompts = (chosen if arguments.tuning or arguments.prompts else choose_prompts())[: arguments.limit]
    if arguments.ceiling:
        return measure_ceiling(prompts)
    prior, assets, rows = fingerprint(pipe), [], []
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for prompt in prompts:
        folder = arguments.output_dir / prompt.text.replace(" ", "-")
        assets.append(make_asset(pipe, prior, prompt, folder, **settings))
        rows.append(measure_asset(assets[-1], world.make_scene(prompt.kind, prompt.color).shape))
        print(f"{prompt.text}: {rows[-1]}", flush=True)
    if arguments.figure is not None:
        titles = [
            f"{prompt.text}\nnormals {row['normals']:.1f}\nIoU {row['iou']:.3f}\ndepth {row['depth']:.3f}"
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        normals_sheet(assets, titles).save(arguments.figure)
    seconds = float(np.mean([asset.metadata["seconds"] for asset in assets]))
    return {**means(rows), "seconds": round(seconds, 1), "assets": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/text-to-3d"))
    parser.add_argument("--figure", type=Path, help="write a sheet with the colors and normals of all assets")
    parser.add_argument("--prompts", nargs="+", default=[], metavar="COLOR:KIND", help="objects of the runs")
    parser.add_argument("--limit", type=int, help="number of prompts, for a trial")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="config fields of the runs")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--tuning", action="store_true", help="use six prompts for tuning settings")
    mode.add_argument("--floor", action="store_true", help="reconstruct true objects from true views")
    mode.add_argument("--ceiling", action="store_true", help="measure random objects of the world instead of assets")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
