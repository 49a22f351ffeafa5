"""Training images of the multi-view prior: rings of eight views around an object, with camera poses.

    python -m hifa.toybox.training.ring_dataset --output-dir toybox-training/rings --scenes 3000

The views of a ring share elevation, distance and background, as in a step of multi-view distillation. Every second
view of a ring forms a group of four views, 90 degrees apart.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...cameras import Camera, camera_to_world, pose_numbers, ring
from .. import world
from ..render import render
from .dataset import FOV_DEG, SIZE, labels_of, sample_background, sample_camera
from .shards import load_shards, make_shards


VIEWS = 8  # per ring
FIRST_SEED = 30_000_000
RADIUS = (2.4, 2.6)  # world units
COMMAND = "python -m hifa.toybox.training.ring_dataset"


@dataclass(frozen=True)
class Rings:
    """Training set in memory: n rings of eight views.

    Args:
        pixels: `(n, 8, 64, 64, 3)` uint8.
        poses: `(n, 8, 16)` float32, see `cameras.pose_numbers`.
        labels: `(n, 8, 5)` int16, see `dataset.Pictures`.
    """

    pixels: np.ndarray
    poses: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


def render_ring(seed: int) -> dict[str, np.ndarray]:
    """Render the ring of the scene that `seed` determines; return one row of the fields of `Rings`."""
    rng = np.random.default_rng(seed)
    scene, (azimuth, elevation) = world.sample_scene(rng), sample_camera(rng)
    cameras, background = (
        ring(Camera(azimuth, elevation, rng.uniform(*RADIUS), FOV_DEG), VIEWS),
        sample_background(rng),
    )
    pixels = [
        render(scene.shape, camera_to_world(camera).numpy(), SIZE, camera.fov_deg, background).color
        for camera in cameras
    ]
    labels = [(*labels_of(scene), camera.view) for camera in cameras]
    return {
        "pixels": (np.stack(pixels) * 255).round().astype(np.uint8),
        "poses": np.stack([pose_numbers(camera).numpy() for camera in cameras]),
        "labels": np.array(labels, np.int16),
    }


def load_rings(folder: Path) -> Rings:
    """Load all rings of a folder.

    Raises:
        FileNotFoundError: If the folder has no rings.
    """
    arrays = load_shards(folder, COMMAND)
    return Rings(**{name: array.reshape(-1, VIEWS, *array.shape[1:]) for name, array in arrays.items()})


def main() -> None:
    """Render the rings from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-training/rings"))
    parser.add_argument("--scenes", type=int, default=3000)
    arguments = parser.parse_args()
    make_shards(arguments.output_dir, arguments.scenes, render_ring, FIRST_SEED)


if __name__ == "__main__":
    main()
