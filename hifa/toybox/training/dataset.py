"""Training images of Toybox, rendered in parallel into a local cache folder that is never committed.

python -m hifa.toybox.training.dataset --output-dir toybox-data --scenes 5000
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import world
from ..render import orbit_pose, render
from .shards import load_shards, make_shards


SIZE, FOV_DEG, CAMERA_RADIUS = 64, 40.0, 2.5
VIEWS_PER_SCENE = 8
COMMAND = "python -m hifa.toybox.training.dataset"


@dataclass(frozen=True)
class Pictures:
    """Training set in memory. Labels are indices into `world.KINDS`, `world.COLORS` and `world.VIEWS`.

    Args:
        pixels: `(n, 64, 64, 3)` uint8.
        labels: `(n, 5)` int16: kind, color, kind below, color below, view. The entries for the object below are -1 for
            a single object.
    """

    pixels: np.ndarray
    labels: np.ndarray


def sample_camera(rng: np.random.Generator) -> tuple[float, float]:
    """Sample a camera direction uniformly on the sphere between -10 and 80 degrees of elevation.

    Returns:
        Azimuth and elevation in degrees.
    """
    low, high = np.sin(np.radians([-10.0, 80.0]))
    return rng.uniform(0, 360), float(np.degrees(np.arcsin(rng.uniform(low, high))))


def sample_background(rng: np.random.Generator) -> tuple[float, float, float]:
    """Sample a slightly tinted gray of about 0.3 to 0.6, from which white and cream parts stand out."""
    return tuple((rng.uniform(0.3, 0.6) + rng.uniform(-0.05, 0.05, 3)).tolist())


def render_scene(seed: int, views: int = VIEWS_PER_SCENE) -> tuple[np.ndarray, np.ndarray]:
    """Render views of the scene that `seed` determines.

    Returns:
        Images `(views, 64, 64, 3)` uint8 and labels `(views, 5)` int16.
    """
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng)
    pixels, labels = [], []
    for _ in range(views):
        azimuth, elevation = sample_camera(rng)
        pose = orbit_pose(azimuth, elevation, CAMERA_RADIUS * rng.uniform(0.96, 1.04))
        picture = render(scene.shape, pose, SIZE, FOV_DEG, sample_background(rng))
        pixels.append((picture.color * 255).round().astype(np.uint8))
        view = world.VIEWS.index(world.view_of(azimuth, elevation))
        labels.append((*labels_of(scene), view))
    return np.stack(pixels), np.array(labels, np.int16)


def labels_of(scene: world.Scene) -> np.ndarray:
    """Return the labels of a scene, `(4,)` int16: kind, color, kind below, color below."""
    kinds, colors = list(world.KINDS), list(world.COLORS)
    below = (-1, -1)
    if scene.on_kind is not None and scene.on_color is not None:
        below = kinds.index(scene.on_kind), colors.index(scene.on_color)
    return np.array([kinds.index(scene.kind), colors.index(scene.color), *below], np.int16)


def scene_of(labels: np.ndarray) -> world.Scene:
    """Return the scene that a row of labels describes, without geometry. `world.caption` needs no geometry."""
    kinds, colors = list(world.KINDS), list(world.COLORS)
    below = (None, None) if labels[2] < 0 else (kinds[labels[2]], colors[labels[3]])
    return world.Scene(kinds[labels[0]], colors[labels[1]], *below, shape=None)  # pyright: ignore[reportArgumentType]


def scene_arrays(seed: int) -> dict[str, np.ndarray]:
    """Render the scene that `seed` determines; return the fields of `Pictures`."""
    pixels, labels = render_scene(seed)
    return {"pixels": pixels, "labels": labels}


def load_dataset(folder: Path) -> Pictures:
    """Load all shards of a folder.

    Raises:
        FileNotFoundError: If the folder has no shards.
    """
    return Pictures(**load_shards(folder, COMMAND))


def main() -> None:
    """Render the training images from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-data"))
    parser.add_argument("--scenes", type=int, default=5000)
    arguments = parser.parse_args()
    make_shards(arguments.output_dir, arguments.scenes, scene_arrays)


if __name__ == "__main__":
    main()
