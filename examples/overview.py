"""Make one picture of several assets. Each row shows six views and two normal maps of one asset.

python -m examples.overview outputs/*/asset --output examples/pictures/overview.png
"""

import argparse
from pathlib import Path

import numpy as np

from hifa import HiFAAsset
from hifa.asset import save_image
from hifa.export.video import normal_to_rgb


def row(asset: HiFAAsset, size: int) -> np.ndarray:
    """Return a row of eight images, `(size, 8 size, 3)`: six views at equal angles, then normals of front and back."""
    views = [asset.render(asset.camera(azimuth, 20), size).color.numpy() for azimuth in range(0, 360, 60)]
    for azimuth in (30, 210):
        picture = asset.render(asset.camera(azimuth, 20), size)
        views.append(normal_to_rgb(picture.normals.numpy(), picture.opacity.numpy()))
    return np.concatenate(views, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", nargs="+", type=Path, help="asset folders written by save_pretrained")
    parser.add_argument("--output", type=Path, default=Path("overview.png"))
    parser.add_argument("--size", type=int, default=112, help="pixels per view")
    arguments = parser.parse_args()
    rows = [row(HiFAAsset.from_pretrained(folder), arguments.size) for folder in arguments.assets]
    save_image(arguments.output, np.concatenate(rows, axis=0))


if __name__ == "__main__":
    main()
