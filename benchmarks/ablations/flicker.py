"""Flicker of a slow turntable (HiFA section 4.2, figure 3) by kernel and number of samples."""

import numpy as np
import torch
from torch import Tensor

from hifa import HiFAAsset
from hifa.cameras import Camera
from hifa.field import RadianceField
from hifa.rendering.image import render_picture
from hifa.rendering.rays import RaySampling


KERNELS = {
    "none": (1.0,),
    "1 1 1": (1.0, 1.0, 1.0),
    "1 2 1": (1.0, 2.0, 1.0),
    "1 1 1 1 1": (1.0,) * 5,
    "1 2 2 2 1": (1.0, 2.0, 2.0, 2.0, 1.0),  # a trapezoid
    "1 6 1": (1.0, 6.0, 1.0),  # of the public code: the trapezoid rule on linearly interpolated weights
}
SAMPLES = (16, 32, 64)  # coarse and fine samples together, half of them each
REFERENCE_SAMPLES = 512
FRAMES, TURN_DEG, START_DEG, SIZE = 8, 0.5, 30.0, 48


def slow_turntable(
    field: RadianceField, base: Camera, samples: int, kernel: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Render frames half a degree apart, with both sampling passes on the field, without a density grid.

    Returns:
        Color `(frames, H, W, 3)` on middle gray, opacity `(frames, H, W)`.
    """
    sampling = RaySampling(samples // 2, samples // 2, kernel)
    gray = torch.full((3,), 0.5)
    cameras = [
        Camera(START_DEG + TURN_DEG * frame, base.elevation_deg, base.radius, base.fov_deg) for frame in range(FRAMES)
    ]
    pictures = [render_picture(field, camera, SIZE, sampling, gray) for camera in cameras]
    return torch.stack([p.color for p in pictures]), torch.stack([p.opacity for p in pictures])


def temporal_flicker(frames: Tensor, mask: Tensor) -> float:
    """Return the mean absolute second difference over time, for colors in [0, 1]. Linear change gives 0.

    Args:
        frames: `(frames, H, W, 3)`.
        mask: `(H, W)` bool, the pixels to count.
    """
    bend = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean(-1)
    return float(bend[:, mask].mean())


def flicker_of(asset: HiFAAsset) -> dict[str, dict[str, float]]:
    """Return the flicker by kernel and number of samples, and that of a reference with many samples.

    Returns:
        `{kernel: {samples: flicker}}`. The entry `reference` holds the flicker that is not caused by sampling. The
        dict is empty for an asset without a surface.
    """
    field, base = asset.radiance_field, asset.camera()
    frames, opacity = slow_turntable(field, base, REFERENCE_SAMPLES, KERNELS["1 1 1"])
    mask = (opacity > 0.5).all(0)
    if not mask.any():
        return {}
    table = {"reference": {str(REFERENCE_SAMPLES): temporal_flicker(frames, mask)}}
    for name, kernel in KERNELS.items():
        turns = {samples: slow_turntable(field, base, samples, kernel)[0] for samples in SAMPLES}
        table[name] = {str(samples): temporal_flicker(turn, mask) for samples, turn in turns.items()}
    return table


def as_array(tables: list[dict], kernel: str, samples: int) -> np.ndarray:
    """Return the flicker `(assets, 1)` in thousandths; NaN for an asset without a surface."""
    values = [table[kernel][str(samples)] if kernel in table else np.nan for table in tables]
    return 1000 * np.array(values)[:, None]
