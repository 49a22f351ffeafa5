"""Preparation of an image with a transparent background as a square on white, the training input of the model."""

from typing import cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor


BICUBIC = PIL.Image.Resampling.BICUBIC


def prepare_image(
    image: PIL.Image.Image, size: int = 256, crop_size: int | None = None, alpha_threshold: int = 0
) -> Tensor:
    """Frame the object, scale the image to `size` and composite onto white, as in SyncDreamer's `prepare_inputs`.

    Args:
        image: Image with an alpha channel.
        size: Height and width of the result in pixels.
        crop_size: Longer side of the object in the result in pixels; SyncDreamer's examples use 200 of 256. `None`
            keeps the framing of the image and only pads the image to a square.
        alpha_threshold: Largest alpha (0 to 255) that counts as background when the object is framed. With 0, as in
            SyncDreamer, an invisible haze widens the frame; 12 suits automatic cutouts.

    Returns:
        `(3, size, size)` float32 in [-1, 1].

    Raises:
        ValueError: If the image has no transparency or no object, or if the crop size is outside [1, size].
    """
    rgba = _check(image, alpha_threshold)
    if crop_size is None:
        side = max(rgba.size)
        square = _centered(rgba, side).resize((size, size), BICUBIC)
    else:
        if not 1 <= crop_size <= size:
            raise ValueError(f"crop_size must be from 1 to {size} pixels, got {crop_size}.")
        square = _centered(_crop(rgba, crop_size, alpha_threshold), size)
    values = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).movedim(-1, 0)
    color, alpha = values[:3], values[3:]
    return (color * alpha + 1 - alpha) * 2 - 1


def _check(image: PIL.Image.Image, alpha_threshold: int) -> PIL.Image.Image:
    if not isinstance(image, PIL.Image.Image):
        raise ValueError(f"image must be a PIL image with transparency, got {type(image).__name__}.")
    if not 0 <= alpha_threshold < 255:
        raise ValueError(f"alpha_threshold must be from 0 to 254, got {alpha_threshold}.")
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise ValueError(f"The image has no transparency (mode {image.mode}); remove its background first.")
    rgba = image.convert("RGBA")
    low, high = cast(tuple[int, int], rgba.getchannel("A").getextrema())
    if high <= alpha_threshold:
        raise ValueError(f"The image is transparent everywhere: the maximum alpha is {high} of 255.")
    if low == 255:
        raise ValueError("The image is opaque everywhere; remove its background first.")
    return rgba


def _crop(rgba: PIL.Image.Image, crop_size: int, alpha_threshold: int) -> PIL.Image.Image:
    """Crop to the object and scale its longer side to `crop_size`."""
    rows, columns = np.nonzero(np.asarray(rgba.getchannel("A")) > alpha_threshold)
    # The last row and column are dropped, as upstream. An object of one pixel keeps its pixel.
    left, top = columns.min(), rows.min()
    right, bottom = max(columns.max(), left + 1), max(rows.max(), top + 1)
    cut = rgba.crop((int(left), int(top), int(right), int(bottom)))
    scale = crop_size / max(cut.size)
    return cut.resize((max(1, int(scale * cut.width)), max(1, int(scale * cut.height))), BICUBIC)


def _centered(rgba: PIL.Image.Image, side: int) -> PIL.Image.Image:
    square = PIL.Image.new("RGBA", (side, side), 0)
    square.paste(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    return square
