"""Make the sample pictures for the image tabs of the app.

    python -m examples.photos

`examples/photos/<name>.png` shows an object of the Toybox world on a transparent background. The azimuth is 30 degrees
from the front, and the elevation is 20 degrees.
"""

from pathlib import Path

import numpy as np
import PIL.Image

from hifa.toybox import world
from hifa.toybox.render import orbit_pose, render


FOLDER = Path(__file__).parent / "photos"
OBJECTS = (("duck", "yellow"), ("teddy bear", "brown"), ("chair", "red"), ("rocket", "green"))
AZIMUTH_DEG, ELEVATION_DEG, RADIUS, FOV_DEG, SIZE = 30.0, 20.0, 2.5, 45.0, 256
WHITE = (1.0, 1.0, 1.0)


def take(kind: str, color: str) -> PIL.Image.Image:
    """Return a picture of an object, `(256, 256)` RGBA."""
    pose = orbit_pose(AZIMUTH_DEG, ELEVATION_DEG, RADIUS)
    picture = render(world.make_scene(kind, color).shape, pose, SIZE, FOV_DEG, WHITE, 2)
    rgba = np.concatenate([picture.color, picture.mask[..., None]], -1)
    return PIL.Image.fromarray((rgba.clip(0, 1) * 255).round().astype(np.uint8))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for kind, color in OBJECTS:
        path = FOLDER / f"{color}-{kind.replace(' ', '-')}.png"
        take(kind, color).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
