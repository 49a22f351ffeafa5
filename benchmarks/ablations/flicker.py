"""Flicker of a slow turntable, by kernel and number of samples (HiFA section 4.2, figure 3)."""

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
    "1 6 1": (1.0, 6.0, 1.0),  # public code: the trapezoid rule on linearly interpolated weights
}
SAMPLES = (16, 32, 64)  # samples per ray; half of the samples are coarse, half are fine
REFERENCE_SAMPLES = 512
FRAMES, TURN_DEG, START_DEG, SIZE = 8, 0.5, 30.0, 48


def slow_turntable(
    field: RadianceField, base: Camera, samples: int, kernel: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Render frames at azimuths half a degree apart. Both sampling passes query the field, without a density grid.

    Returns:
        Colors `(frames, H, W, 3)` on middle gray, and opacities `(frames, H, W)`.
    """
    sampling = RaySampling(samples // 2, samples // 2, kernel)
    gray = torch.full((3,), 0.5)
    cameras = [
        Camera(START_DEG + TURN_DEG * frame, base.elevation_deg, base.radius, base.fov_deg) for frame in range(FRAMES)
    ]
    pictures = [render_picture(field, camera, SIZE, sampling, gray) for camera in cameras]
    return torch.stack([p.color for p in pictures]), torch.stack([p.opacity for p in pictures])


def temporal_flicker(frames: Tensor, mask: Tensor) -> float:
    """Return the mean absolute second difference over time, for colors in [0, 1]. A linear change has no flicker.

    Args:
        frames: `(frames, H, W, 3)`.
        mask: `(H, W)` bool. Only pixels in the mask count.
    """
    bend = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean(-1)
    return float(bend[:, mask].mean())


def flicker_of(asset: HiFAAsset) -> dict[str, dict[str, float]]:
    """Return the flicker by kernel and number of samples, and the flicker of a reference with many samples.

    Returns:
        `{kernel: {samples: flicker}}`. The entry `reference` holds the flicker that remains with many samples. The
        dict is empty if the asset has no surface.
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
    """Return the flicker `(assets, 1)` x 1000. The value is NaN for an asset without a surface."""
    values = [table[kernel][str(samples)] if kernel in table else np.nan for table in tables]
    return 1000 * np.array(values)[:, None]
