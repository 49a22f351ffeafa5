"""Measures of an asset, from renders of eight views."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from hifa import HiFAAsset
from hifa.rendering.image import Picture
from hifa.toybox import world
from hifa.toybox.render import orbit_pose, render
from hifa.toybox.training.dataset import CAMERA_RADIUS, FOV_DEG, SIZE, sample_background

from ..judge import Judge
from ..text_to_3d import AZIMUTHS, ELEVATION, Prompt, Views, asset_row
from .kept import digest, kept


BACKGROUND_SEED, WORLD_SEED = 14_000_000, 15_000_000
WORLD_SCENES = 3  # scenes per prompt; their mean color and sharpness are the reference
SEMI_OPAQUE = (0.1, 0.9)
LUMINANCE = (0.299, 0.587, 0.114)


def measure(asset: HiFAAsset, prompt: Prompt, number: int, judge: Judge) -> dict:
    """Return all measures of an asset.

    Args:
        asset: Asset to measure.
        prompt: Prompt of the asset.
        number: Number of the prompt. The number seeds the backgrounds of the renders.
        judge: Classifier of the renders.

    Returns:
        A dict with the entries below. A value is NaN if the asset has no object to measure.

        - `right`: share of views with the correct kind and color.
        - `same_kind`, `consistent`, `diverged`: 0 or 1, as in `benchmarks.text_to_3d`.
        - `z_variance`: mean over opaque pixels, in squared world units.
        - `semi_opaque`: share of half-transparent rays among the rays that are not empty.
        - `color_error`: RGB distance between the mean color of the asset and the mean color of world renders.
        - `sharpness`: binary logarithm of the sharpness divided by the sharpness of world renders. The value is 1 if
          the asset is twice as sharp.
        - `roughness`: absolute value of `sharpness`.
        - `features`: `(8, 192)` features of the judge, for the diversity.
    """
    rng = np.random.default_rng([BACKGROUND_SEED, number])
    seen = [asset.render(asset.camera(azimuth, ELEVATION), SIZE, sample_background(rng)) for azimuth in AZIMUTHS]
    pictures = torch.stack([view.color.permute(2, 0, 1) for view in seen])
    opacity = torch.stack([view.opacity for view in seen])
    opaque = torch.stack([view.z_variance for view in seen])[opacity > 0.5]
    z_variance = float(opaque.mean()) if len(opaque) else float("nan")
    row = asset_row(prompt, judge.verdict(pictures), Views(pictures, float(opacity.mean()), z_variance), 0.0)
    truth = float(np.mean([truth[1] for truth in _world(prompt)]))
    sharp = float(np.log2(_mean_sharpness(seen) / truth))
    with torch.no_grad():
        features = judge.features(pictures)
    return {
        "right": row["both_right"] / len(AZIMUTHS),
        "same_kind": float(row["same_kind"]),
        "consistent": float(row["consistent"]),
        "diverged": float(row["diverged"]),
        "z_variance": z_variance,
        "semi_opaque": semi_opaque_share(opacity),
        "color_error": float(np.nanmean([_color_error(*pair) for pair in zip(seen, _world(prompt), strict=True)]))
        if len(opaque)
        else float("nan"),
        "sharpness": sharp,
        "roughness": abs(sharp),
        "features": features.half().tolist(),
    }


def semi_opaque_share(opacity: Tensor) -> float:
    """Return the share of rays with an opacity below 0.9 among all rays above 0.1, or NaN without such rays."""
    low, high = SEMI_OPAQUE
    there = opacity > low
    return float((there & (opacity < high)).sum() / there.sum()) if there.any() else float("nan")


def mean_color(color: Tensor, mask: Tensor) -> Tensor:
    """Return the mean `(3,)` of the colors `(H, W, 3)` over the pixels of a mask `(H, W)` bool."""
    return color[mask].mean(0)


def sharpness(color: Tensor, mask: Tensor) -> float:
    """Return the mean absolute Laplacian of the luminance, or NaN if no pixel counts.

    A pixel counts if the pixel and its four neighbors are in the mask. This rule excludes the outline.

    Args:
        color: `(H, W, 3)` in [0, 1].
        mask: `(H, W)` bool.
    """
    gray = color @ torch.tensor(LUMINANCE)
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    laplacian = (around - 4 * gray[1:-1, 1:-1]).abs()
    return float(laplacian[inner].mean()) if inner.any() else float("nan")


def diversity(features: np.ndarray) -> float:
    """Return the mean distance between features of different seeds, over all views and pairs of seeds.

    Args:
        features: `(seeds, 8, d)` features of one prompt. The function normalizes each feature vector.
    """
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    pairs = [(i, j) for i in range(len(unit)) for j in range(i)]
    return float(np.mean([np.linalg.norm(unit[i] - unit[j], axis=-1).mean() for i, j in pairs]))


def _color_error(view: Picture, truth: tuple[Tensor, float]) -> float:
    mask = view.opacity > 0.5
    return float((mean_color(view.color, mask) - truth[0]).norm()) if mask.any() else float("nan")


def _mean_sharpness(seen: list[Picture]) -> float:
    values = [sharpness(view.color, view.opacity > 0.5) for view in seen]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


@cache
def _world(prompt: Prompt) -> list[tuple[Tensor, float]]:
    """Return the mean color `(3,)` and the sharpness of world renders of the prompt, for each of the eight views.

    Both values are means over `WORLD_SCENES` scenes.
    """
    truths = []
    for azimuth in AZIMUTHS:
        colors, values = [], []
        for index in range(WORLD_SCENES):
            rng = np.random.default_rng([WORLD_SEED, index, azimuth])
            shape = world.make_scene(prompt.kind, prompt.color, rng).shape
            pose = orbit_pose(azimuth, ELEVATION, CAMERA_RADIUS)
            picture = render(shape, pose, SIZE, FOV_DEG, sample_background(rng))
            color, mask = torch.from_numpy(picture.color), torch.from_numpy(picture.mask) > 0.5
            colors.append(mean_color(color, mask))
            values.append(sharpness(color, mask))
        truths.append((torch.stack(colors).mean(0), float(np.nanmean(values))))
    return truths


def measured(folder: Path, prompt: Prompt, number: int, judge: Judge, key: bytes) -> dict:
    """Return the result of `measure` for the asset in a folder. The result is cached next to the asset.

    Args:
        folder: Folder of the asset.
        prompt: See `measure`.
        number: See `measure`.
        judge: See `measure`.
        key: Weights of the judge. The result is recomputed if the weights change.
    """
    return kept(
        folder / "measured.json",
        digest(key, Path(__file__).read_bytes(), (folder / SAFETENSORS_WEIGHTS_NAME).read_bytes()),
        lambda: measure(HiFAAsset.from_pretrained(folder), prompt, number, judge),
    )
