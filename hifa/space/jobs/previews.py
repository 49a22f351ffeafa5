"""Preview pictures of a run for the browser: color, normals, depth and opacity."""

import base64
import io

import numpy as np
import PIL.Image
import torch

from ...export.video import depth_to_rgb, normal_to_rgb
from ...optimization.initialization import PREVIEW_GRAY
from ...optimization.run import HiFARun
from ...rendering.image import render_picture


MODES = ("color", "normals", "depth", "opacity")


def snapshot(run: HiFARun, azimuth_deg: float, size: int = 96) -> dict[str, str]:
    """Render previews of a run from an elevation of 15 degrees.

    Args:
        run: The run to render.
        azimuth_deg: Azimuth of the camera in degrees; 0 is the front.
        size: Pixels per side.

    Returns:
        A JPEG data URI for each of `MODES`.
    """
    background = torch.full((3,), PREVIEW_GRAY, device=run.device)
    picture = render_picture(run.radiance_field, run.front_camera(azimuth_deg), size, run.sampling, background)
    opacity = picture.opacity.cpu().numpy()
    pictures = {
        "color": picture.color.cpu().numpy(),
        "normals": normal_to_rgb(picture.normals.cpu().numpy(), opacity),
        "depth": depth_to_rgb(picture.depth.cpu().numpy(), opacity),
        "opacity": np.repeat(opacity[..., None], 3, -1),
    }
    return {mode: data_uri(pictures[mode]) for mode in MODES}


def data_uri(pixels: np.ndarray) -> str:
    """Encode pixels, `(H, W, 3)` in [0, 1], as a JPEG data URI."""
    buffer = io.BytesIO()
    PIL.Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "jpeg", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
