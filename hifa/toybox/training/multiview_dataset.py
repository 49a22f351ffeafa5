"""Training scenes of the Toybox multi-view model: a ring of true views of each scene, and photos as model input.

    python -m hifa.toybox.training.multiview_dataset --output-dir toybox-multiview-data --scenes 5000

The ring is `given_views.ring_cameras` for a field with bound 1, so a reconstruction from these views has the scale of
the world. In every scene the ring starts at a random azimuth, because a photo need not be frontal. Each photo is taken
from the azimuth of one view of the ring. The model counts this view as view 0. Photos are framed as in a pipeline
call, which hides the camera distance. The model receives only the elevation.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from ...cameras import Camera, camera_to_world
from ...multiview.given_views import ring_cameras
from ...multiview.input_image import prepare_image
from .. import world
from ..render import Picture, orbit_pose, render
from ..shapes import Shape
from .dataset import labels_of
from .multiview_models import CROP_SIZE
from .shards import load_shards, make_shards


SIZE = 64  # pixels per side of an image
BOUND = 1.0  # bound of the field that the ring surrounds
PHOTO_ELEVATION_DEG = (-10.0, 40.0)  # as in SyncDreamer
PHOTO_RADIUS, PHOTO_FOV_DEG = (2.2, 3.0), 45.0
PHOTO_PIXELS = 160  # side of a photo before framing, which reduces the photo to about half its size
PHOTOS_PER_SCENE = 8
COMMAND = "python -m hifa.toybox.training.multiview_dataset"
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Scenes:
    """Training set in memory: n scenes with p photos each.

    Args:
        views: `(n, 16, 64, 64, 3)` uint8 on white, in ring order. View 0 is at `azimuth_deg`.
        photos: `(n, p, 64, 64, 3)` uint8 on white, framed.
        first_view: `(n, p)` int16, index of the ring view at the azimuth of the photo.
        elevation_deg: `(n, p)` float32, elevation of the photo's camera.
        azimuth_deg: `(n,)` float32, azimuth of view 0. The front of an object is at azimuth 0.
        labels: `(n, 4)` int16: kind, color, kind below, color below, as indices into `world`. The entries for the
            object below are -1 for a single object.
    """

    views: np.ndarray
    photos: np.ndarray
    first_view: np.ndarray
    elevation_deg: np.ndarray
    azimuth_deg: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.views)


def ring_from(azimuth_deg: float) -> list[Camera]:
    """Return the ring of the multi-view model in world units, with the first camera at `azimuth_deg`."""
    return [Camera(c.azimuth_deg + azimuth_deg, c.elevation_deg, c.radius, c.fov_deg) for c in ring_cameras(BOUND)]


def look(shape: Shape, camera: Camera, size: int = SIZE, samples: int = 2) -> Picture:
    """Render a shape on white from a camera in world units."""
    return render(shape, camera_to_world(camera).numpy(), size, camera.fov_deg, WHITE, samples)


def take_photo(shape: Shape, azimuth_deg: float, elevation_deg: float, radius: float) -> PIL.Image.Image:
    """Render a photo like the photos of users: RGBA, with the object roughly centered and at any scale.

    One ray per pixel makes the alpha binary and keeps the background out of the colors. Framing reduces the photo to
    about half its size.
    """
    picture = render(shape, orbit_pose(azimuth_deg, elevation_deg, radius), PHOTO_PIXELS, PHOTO_FOV_DEG, WHITE, 1)
    rgba = np.concatenate([picture.color, picture.mask[..., None]], -1)
    return PIL.Image.fromarray((rgba * 255).round().astype(np.uint8))


def sample_photo_camera(rng: np.random.Generator) -> tuple[float, float]:
    """Sample the elevation in degrees and the distance in world units of a photo's camera."""
    return rng.uniform(*PHOTO_ELEVATION_DEG), rng.uniform(*PHOTO_RADIUS)


def framed(photo: PIL.Image.Image) -> np.ndarray:
    """Frame a photo as model input: `(64, 64, 3)` uint8 on white."""
    values = prepare_image(photo, SIZE, CROP_SIZE).movedim(0, -1).numpy()
    return ((values + 1) * 127.5).round().astype(np.uint8)


@dataclass(frozen=True)
class PhotoDraw:
    """Photos drawn for a batch of size B.

    Half of the photos are mirrored. A mirrored photo shows the mirrored object, so its ring runs in the opposite
    direction.

    Args:
        scene, photo: `(B,)` indices into the training set.
        mirrored: `(B,)` bool.
        order: `(B, 16)` indices of ring views, starting with the view of the photo. The views of a mirrored photo have
            to be mirrored, too.
    """

    scene: np.ndarray
    photo: np.ndarray
    mirrored: np.ndarray
    order: np.ndarray


def draw_photos(scenes: Scenes, rng: np.random.Generator, count: int) -> PhotoDraw:
    """Draw `count` random photos."""
    views = scenes.views.shape[1]
    scene, photo = rng.integers(len(scenes), size=count), rng.integers(scenes.photos.shape[1], size=count)
    mirrored = rng.random(count) < 0.5
    turn = np.where(mirrored, -1, 1)[:, None] * np.arange(views)
    return PhotoDraw(scene, photo, mirrored, (scenes.first_view[scene, photo][:, None] + turn) % views)


def drawn_pixels(scenes: Scenes, draw: PhotoDraw) -> np.ndarray:
    """Return the photos `(B, 64, 64, 3)` uint8 of a draw."""
    photos = scenes.photos[draw.scene, draw.photo]
    return np.where(draw.mirrored[:, None, None, None], photos[:, :, ::-1], photos)


def render_scene(seed: int, photos: int = PHOTOS_PER_SCENE) -> Scenes:
    """Render the scene that `seed` determines, as `Scenes` with n = 1."""
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng)
    azimuth = float(np.float32(rng.uniform(0, 360)))
    ring = ring_from(azimuth)
    views = np.stack([(look(scene.shape, camera).color * 255).round().astype(np.uint8) for camera in ring])
    first = rng.integers(len(ring), size=photos)
    cameras = [sample_photo_camera(rng) for _ in range(photos)]
    taken = [framed(take_photo(scene.shape, ring[i].azimuth_deg, *c)) for i, c in zip(first, cameras, strict=True)]
    return Scenes(
        views[None],
        np.stack(taken)[None],
        first[None].astype(np.int16),
        np.array([[elevation for elevation, _ in cameras]], np.float32),
        np.array([azimuth], np.float32),
        labels_of(scene)[None],
    )


def scene_arrays(seed: int) -> dict[str, np.ndarray]:
    """Render the scene that `seed` determines; return the fields of `Scenes`."""
    return vars(render_scene(seed))


def load_dataset(folder: Path) -> Scenes:
    """Load all shards of a folder.

    Raises:
        FileNotFoundError: If the folder has no shards.
    """
    return Scenes(**load_shards(folder, COMMAND))


def main() -> None:
    """Render the training scenes from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("toybox-multiview-data"))
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--first-seed", type=int, default=10_000_000, help="seed of the first scene")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    first, workers = arguments.first_seed, arguments.workers
    make_shards(arguments.output_dir, arguments.scenes, scene_arrays, first, workers)


if __name__ == "__main__":
    main()
