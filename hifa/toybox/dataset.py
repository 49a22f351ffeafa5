"""Training images of Toybox, rendered in parallel into a local cache folder that is never committed.

python -m hifa.toybox.dataset --output-dir toybox-data --scenes 5000
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic import atomically
from . import world
from .render import orbit_pose, render


SIZE, FOV_DEG, CAMERA_RADIUS = 64, 40.0, 2.5
VIEWS_PER_SCENE = 8
SHARD = 100  # scenes per file


@dataclass(frozen=True)
class Pictures:
    """Training set in memory. Labels are indices into `world.KINDS`, `world.COLOURS` and `world.VIEWS`.

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
    kinds, colours = list(world.KINDS), list(world.COLOURS)
    below = (-1, -1) if scene.on_kind is None else (kinds.index(scene.on_kind), colours.index(scene.on_colour))
    pixels, labels = [], []
    for _ in range(views):
        azimuth, elevation = sample_camera(rng)
        pose = orbit_pose(azimuth, elevation, CAMERA_RADIUS * rng.uniform(0.96, 1.04))
        picture = render(scene.shape, pose, SIZE, FOV_DEG, sample_background(rng))
        pixels.append((picture.colour * 255).round().astype(np.uint8))
        view = world.VIEWS.index(world.view_of(azimuth, elevation))
        labels.append((kinds.index(scene.kind), colours.index(scene.colour), *below, view))
    return np.stack(pixels), np.array(labels, np.int16)


def scene_of(labels: np.ndarray) -> world.Scene:
    """Return the scene that a row of labels describes, without geometry. `world.caption` needs no geometry."""
    kinds, colours = list(world.KINDS), list(world.COLOURS)
    below = (None, None) if labels[2] < 0 else (kinds[labels[2]], colours[labels[3]])
    return world.Scene(kinds[labels[0]], colours[labels[1]], *below, shape=None)


def _write_shard(task: tuple[Path, int]) -> None:
    path, first = task
    if path.exists():
        return
    pixels, labels = zip(*(render_scene(seed) for seed in range(first, first + SHARD)), strict=True)
    with atomically(path) as partial:
        np.savez(partial, pixels=np.concatenate(pixels), labels=np.concatenate(labels))


def make_dataset(folder: Path, scenes: int, first_seed: int = 0, workers: int | None = None) -> None:
    """Render `scenes` scenes in shards of 100. Existing shards are kept, so an interrupted run resumes."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(folder / f"{seed:06d}.npz", seed) for seed in range(first_seed, first_seed + scenes, SHARD)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(_write_shard, tasks), 1):
            print(f"{done * SHARD} of {scenes} scenes", flush=True)


def load_dataset(folder: Path) -> Pictures:
    """Load all shards of a folder.

    Raises:
        FileNotFoundError: If the folder has no shards.
    """
    shards = [np.load(path) for path in sorted(folder.glob("[0-9]*.npz"))]
    if not shards:
        raise FileNotFoundError(f"No training images in {folder}. Render them with: python -m hifa.toybox.dataset")
    return Pictures(np.concatenate([s["pixels"] for s in shards]), np.concatenate([s["labels"] for s in shards]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-data"))
    parser.add_argument("--scenes", type=int, default=5000)
    arguments = parser.parse_args()
    make_dataset(arguments.output_dir, arguments.scenes)


if __name__ == "__main__":
    main()
