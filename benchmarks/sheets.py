"""Reconstruction from twelve of sixteen hallucinated views, compared with the four held-out views.

    python -m benchmarks.sheets --sheets DIR

DIR contains sheets in the format of `given_views.read_views`. A sheet is a PNG with sixteen square views on white,
side by side, such as the 4096x256 sheets of SyncDreamer. Other pictures in DIR are ignored. The runs are
reconstructions without a prior. There is no ground truth, so the benchmark compares renders with held-out hallucinated
views. If the views are inconsistent, no reconstruction can match the held-out views exactly.

For each sheet, NAME.png in the output folder shows the held-out views in three rows: our renders, the hallucinated
views, and the difference multiplied by four. The last line printed is one JSON object:

    sheets       for each sheet: `psnr` at the held-out views, which are every fourth view, starting with the third;
                 `given_psnr` at the twelve given views; `seconds` of the optimization. PSNR is in dB, on white
    psnr         mean of `psnr` over the sheets
"""

import argparse
import json
from pathlib import Path

import numpy as np
import PIL.Image

from hifa import HiFAConfig
from hifa.multiview import ViewRing
from hifa.multiview.given_views import GivenViews, read_views, ring_cameras

from .image_to_3d import as_array, reconstruct, render, scores


COUNT = ViewRing().num_views
HELD_OUT = range(2, COUNT, 4)


def find_sheets(folder: Path) -> list[Path]:
    """Return the sheets in `folder`, sorted by name.

    Raises:
        ValueError: If the folder has no sheets.
    """
    sheets = []
    for path in sorted(folder.glob("*.png")):
        with PIL.Image.open(path) as image:
            if image.width == COUNT * image.height:
                sheets.append(path)
    if not sheets:
        raise ValueError(f"{str(folder)!r} holds no PNG of {COUNT} square views side by side.")
    return sheets


def split(sheet: PIL.Image.Image, bound: float, size: int) -> tuple[GivenViews, GivenViews]:
    """Return the given views of a sheet, and the held-out views."""
    side, cameras = sheet.height, ring_cameras(bound)
    tiles = [sheet.crop((i * side, 0, (i + 1) * side, side)) for i in range(COUNT)]
    given = [i for i in range(COUNT) if i not in HELD_OUT]
    shown, held_out = (
        read_views([tiles[i] for i in part], bound, size, [cameras[i] for i in part]) for part in (given, HELD_OUT)
    )
    return shown, held_out


def write_picture(path: Path, images: np.ndarray, views: np.ndarray) -> None:
    rows = [images, views, np.minimum(1, 4 * abs(images - views))]
    pixels = np.concatenate([np.concatenate(list(row), 1) for row in rows])
    PIL.Image.fromarray((pixels * 255).round().astype(np.uint8)).save(path)


def measure(path: Path, folder: Path, size: int, changes: dict) -> dict:
    config = HiFAConfig.hallucinated(given_size=size, **changes)
    given, held_out = split(PIL.Image.open(path), config.bound, size)
    run, seconds, _ = reconstruct(given, config)
    asset = run.asset()
    images = render(asset, held_out)
    write_picture(folder / path.name, images, as_array(held_out))
    return {
        "psnr": scores(images, as_array(held_out))["psnr"],
        "given_psnr": scores(render(asset, given), as_array(given))["psnr"],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", type=Path, required=True, help="folder with sheets")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks-cache/sheets"))
    parser.add_argument("--size", type=int, default=128, help="pixels per side of the downsampled views; default: 128")
    parser.add_argument("--steps", type=int, help="steps per run, for a trial; default: the preset's")
    arguments = parser.parse_args()
    sheets = find_sheets(arguments.sheets)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    changes = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    result = {}
    for path in sheets:
        result[path.stem] = measure(path, arguments.output_dir, arguments.size, changes)
        print(f"{path.stem}: {result[path.stem]}", flush=True)
    print(json.dumps({"sheets": result, "psnr": round(float(np.mean([r["psnr"] for r in result.values()])), 2)}))


if __name__ == "__main__":
    main()
