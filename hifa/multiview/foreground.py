"""Segmentation of the object in an opaque view on white."""

from typing import cast

import numpy as np
from scipy import ndimage


WHITE_LEVEL = 0.95  # a pixel with a channel below this value is not white
# A white region inside the object is a hole only if it is larger than a highlight or an eye, and as white as the
# background. The levels were measured on regions of this size in four sheets of SyncDreamer. The holes (through the
# handle of a teapot, between a dragon's legs) have a median of 250 to 253 of 255. The white parts of the dragon and of
# a clownfish have a median of 244 to 248.
HOLE_SHARE, HOLE_PIXELS = 0.01, 8  # fraction of the object's pixels, holes included; minimum in pixels
HOLE_LEVEL = 250 / 255  # minimum median of the darkest channel in a hole


def foreground(color: np.ndarray) -> np.ndarray:
    """Return the mask `(H, W)` bool of the object in an image `(H, W, 3)` in [0, 1].

    White pixels that are connected to the border are background. White pixels inside the object, such as a highlight,
    an eye or a label, belong to the object. The exception is a large region as white as the background, such as the
    hole of a donut or of the handle of a mug.
    """
    darkest = color.min(-1)
    solid = cast(np.ndarray, ndimage.binary_fill_holes(darkest < WHITE_LEVEL))
    regions, count = ndimage.label(solid & (darkest >= WHITE_LEVEL))  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return solid
    index = np.arange(1, count + 1)
    sizes, levels = ndimage.sum_labels(solid, regions, index), ndimage.median(darkest, regions, index)
    # Tolerance of half an 8-bit step, since the level is rounded differently in float32.
    smallest = max(HOLE_SHARE * solid.sum(), HOLE_PIXELS)
    holes = index[(sizes > smallest) & (levels > HOLE_LEVEL - 0.5 / 255)]
    return solid & ~np.isin(regions, holes)
